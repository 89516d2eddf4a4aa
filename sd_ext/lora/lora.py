"""`Lora`: a LoRA in memory, as adapters by module together with its file's metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.original.families import families
from .adapter import PARTS, Adapter, ModuleName


@dataclass(eq=False)
class Lora:
    """Adapters by module.

    Args:
        adapters: the change of each module's weight; kinds, ranks and strengths may differ.
        metadata: text entries of the file's header, without those that describe the file itself.
        base: "sd15", "sd21", "sdxl" or "sdxl-refiner" if known; needed for names in kohya's format.
        bundled: token embeddings `bundle_emb.*`, which A1111 allows in the same file; kept unchanged.
        errors: for results of a tool that had to approximate, the relative Frobenius error of each module's delta.
        dtype: what files of it are written in unless told otherwise: that of the files it was computed from. None keeps
            each tensor's own.
        skipped: keys of the file that mean nothing and were left out on request.

    Raises:
        InputError: there is no adapter.
        UnknownNameError: an unknown part or base.
    """

    adapters: dict[ModuleName, Adapter]
    metadata: dict[str, str] = field(default_factory=dict)
    base: str | None = None
    bundled: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[ModuleName, float] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.adapters = {ModuleName(*module): adapter for module, adapter in sorted(self.adapters.items())}
        for part in self.parts:
            if part not in PARTS:
                raise UnknownNameError("part of a pipeline", part, PARTS)
        if self.base is not None and self.base not in families():
            raise UnknownNameError("base model", self.base, families())
        if not self.adapters:
            raise InputError("there is no adapter in it")

    def __repr__(self) -> str:
        kinds = Counter(adapter.rules.name for adapter in self)
        ranks = sorted({adapter.rank for adapter in self} - {0})  # 0: whole factors
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        sizes = f" ranks {', '.join(map(str, ranks))};" if ranks else ""
        return f"Lora({what};{sizes} {', '.join(self.parts)})"

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self.adapters.values())

    def __len__(self) -> int:
        return len(self.adapters)

    @property
    def parts(self) -> list[str]:
        """The parts of a pipeline that it changes, sorted."""
        return sorted({module.part for module in self.adapters})

    @property
    def plain(self) -> bool:
        """Whether every adapter is LoRA without DoRA."""
        return all(adapter.plain for adapter in self)

    def of_part(self, part: str) -> dict[str, Adapter]:
        """The adapters of one part, by path."""
        return {module.path: adapter for module, adapter in self.adapters.items() if module.part == part}

    def delta(self, module: tuple[str, str], weight: Tensor | None = None) -> Tensor:
        """The change W' - W of one module at strength 1.

        Args:
            module: (part, path).
            weight: W, (out, in) or (out, in, k, k); required for DoRA.

        Returns:
            float32, in the shape of `weight` if given.

        Raises:
            InputError: the LoRA has no such module, the weight does not fit, or it is required and missing.
        """
        module = ModuleName(*module)
        if module not in self.adapters:
            raise UnknownNameError("module of this LoRA", str(module), map(str, self.adapters))
        try:
            return self.adapters[module].delta(weight)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
