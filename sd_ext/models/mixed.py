"""Models whose parts are read from other models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .model import Change, Model
from .weights import StoredTensor

if TYPE_CHECKING:
    import torch


class ByParts(Model):
    """Base of models that read each part from another model."""

    @abstractmethod
    def owner(self, part: str) -> Model:
        """The model that a part is read from."""

    def check_weights(self, part: str) -> None:
        self.owner(part).check_weights(part)

    def config(self, part: str) -> dict[str, Any]:
        return self.owner(part).config(part)

    def where(self, part: str) -> str:
        return self.owner(part).where(part)

    def load(self, part: str, dtype: torch.dtype | None = None) -> Any:
        return self.owner(part).load(part, dtype)

    def load_as(self, kind: Any, part: str, dtype: torch.dtype | None = None) -> Any:
        return self.owner(part).load_as(kind, part, dtype)

    def tensors(self, part: str) -> Mapping[str, StoredTensor]:
        return self.owner(part).tensors(part)

    def contents(self, part: str) -> Iterator[tuple[str, bytes]]:
        return self.owner(part).contents(part)


class Mixed(ByParts):
    """A model with parts from several others, such as the U-Net and text encoder of one and the autoencoder of another.

    Args:
        name: the name of the model that most parts are from, as the user gave it.
        owners: part -> the model that it is read from.
        index: the settings of the pipeline as a whole; see `Model.index`.
    """

    def __init__(self, name: str, owners: Mapping[str, Model], index: Mapping[str, Any] | None = None):
        super().__init__(name)
        self.owners, self._index = dict(owners), index or {}

    def owner(self, part: str) -> Model:
        if part not in self.owners:
            raise ModelError(f"{self.name or 'the model'} is incomplete: it has no {part}")
        return self.owners[part]

    @property
    def parts(self) -> Sequence[str]:
        return list(self.owners)

    @property
    def index(self) -> Mapping[str, Any]:
        return self._index

    def check(self, parts: Sequence[str] | None = None) -> None:
        for part in self.owners if parts is None else parts:
            self.owner(part).config(part)

    def pipeline(self, **options: Any) -> Any:
        raise ModelError("a mixed model has no pipeline of its own; save it as a folder first")

    def check_apart(self, out: Path) -> None:
        for owner in self.owners.values():
            owner.check_apart(out)

    def write_changed(self, new: Path, parts: Sequence[str], change: Change) -> None:
        raise ModelError("a mixed model cannot be copied; save it as a folder first")
