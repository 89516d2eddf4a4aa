"""A model on the Hugging Face Hub. Once downloaded, it is a pipeline folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .folder import Folder
from .mixed import ByParts
from .model import Change, Model

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name` of a Hub id. Whether it exists on the Hub is not checked."""
    return bool(HUB_ID.fullmatch(text))


class OnHub(ByParts):
    """A pipeline on the Hub. It is downloaded, safetensors files only, when its contents are first needed.

    Args:
        name: `owner/name`.
        variant: which weight files to download; see `find_model`.
        revision: branch, tag or commit; None is the main branch.
    """

    def __init__(self, name: str, variant: str | None = None, revision: str | None = None):
        super().__init__(f"{name}@{revision}" if revision else name)
        self.id, self.variant, self.revision = name, variant, revision

    @cached_property
    def folder(self) -> Folder:
        """The local copy, downloaded on first use. Raises `ModelError` if that fails."""
        from diffusers import DiffusionPipeline

        try:
            root = DiffusionPipeline.download(
                self.id, variant=self.variant or None, revision=self.revision, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            message = f"{self.name} is neither a folder here nor a model on the Hub that loads: {reason}"
            raise ModelError(message) from error
        return Folder(Path(root), self.name, self.variant)

    def owner(self, part: str) -> Model:
        return self.folder

    @property
    def parts(self) -> Sequence[str]:
        return self.folder.parts

    @property
    def index(self) -> Mapping[str, Any]:
        return self.folder.index

    def check(self, parts: Sequence[str] | None = None) -> None:
        """See `Model.check`.

        With None for `parts` nothing is checked: the later download does that, and none starts here.
        """
        if parts is not None:
            self.folder.check(parts)

    def pipeline(self, **options: Any) -> Any:
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(
            self.id, variant=self.variant or None, revision=self.revision, **options
        )

    def check_apart(self, out: Path) -> None:
        self.folder.check_apart(out)

    def write_changed(self, new: Path, parts: Sequence[str], change: Change) -> None:
        self.folder.write_changed(new, parts, change)
