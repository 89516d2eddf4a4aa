"""A whole model in one `.safetensors` file, in the original layout (see `original`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .building import build
from .checkpoint import Checkpoint, log
from .model import Change, part_class
from .original.tokenizer import make_tokenizer
from .to_folder import fill_folder

if TYPE_CHECKING:
    import torch


class SingleFile(Checkpoint):
    """A Stable Diffusion in one file. Only its header is read until weights are needed; see `Checkpoint`."""

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        import torch

        if part in self.others:
            return self.others[part].load(part, dtype)
        if part.startswith("tokenizer"):
            return make_tokenizer(self.style(part))
        return self.load_as(part_class(part), part, dtype or torch.float32)

    def load_as(self, kind: Any, part: str, dtype: torch.dtype | None = None) -> Any:
        if part in self.others:
            return self.others[part].load_as(kind, part, dtype)
        return build(self, kind, part, dtype, self.config(part))

    def pipeline(self, **options: Any) -> Any:
        import diffusers

        self.check()
        for note in self.notes:
            log.warning("%s: %s", self.name, note)
        dtype, index = options.get("dtype") or options.get("torch_dtype"), self.index
        parts = {part: self.load(part, dtype) for part in self.parts if part != "scheduler"}
        config = self.config("scheduler")
        parts["scheduler"] = getattr(diffusers, config["_class_name"]).from_config(config)
        settings = {name: value for name, value in index.items() if name not in parts and not name.startswith("_")}
        settings = {name: None if value == [None, None] else value for name, value in settings.items()}
        return getattr(diffusers, index["_class_name"])(**parts, **settings)

    def write_changed(self, new: Path, parts: Sequence[str], change: Change) -> None:
        fill_folder(self, new, parts, change)
