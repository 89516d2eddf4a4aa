"""A LoRA in memory: adapters by module, and what its file says beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models import FAMILIES
from .adapter import PARTS, Adapter, ModuleName


@dataclass(eq=False)
class Lora:
    """Adapters by module.

    Args:
        adapters: what is added to each module's weight; kinds, ranks and strengths may differ.
        metadata: the file header's text entries, without those that describe the file's layout.
        base: "sd15", "sd21" or "sdxl" where known; it decides kohya's names.
        bundled: tensors that A1111 allows in the same file, `bundle_emb.*` (token embeddings); kept as they are.
        errors: relative Frobenius error of each module's delta, where a tool had to approximate.

    Raises:
        InputError: no adapter; or UnknownNameError: a part or base that there is not.
    """

    adapters: dict[ModuleName, Adapter]
    metadata: dict[str, str] = field(default_factory=dict)
    base: str | None = None
    bundled: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[ModuleName, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.adapters = {ModuleName(*module): adapter for module, adapter in sorted(self.adapters.items())}
        for part in self.parts:
            if part not in PARTS:
                raise UnknownNameError("part of a pipeline", part, PARTS)
        if self.base is not None and self.base not in FAMILIES:
            raise UnknownNameError("base model", self.base, FAMILIES)
        if not self.adapters:
            raise InputError("there is no adapter in it")

    def __repr__(self) -> str:
        kinds = Counter(adapter.rules.name for adapter in self)
        ranks = sorted({adapter.rank for adapter in self})
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"Lora({what}; ranks {', '.join(map(str, ranks))}; {', '.join(self.parts)})"

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self.adapters.values())

    def __len__(self) -> int:
        return len(self.adapters)

    @property
    def parts(self) -> list[str]:
        """The parts of a pipeline it changes."""
        return sorted({module.part for module in self.adapters})

    @property
    def plain(self) -> bool:
        """Whether every adapter is LoRA without DoRA."""
        return all(adapter.plain for adapter in self)

    def of_part(self, part: str) -> dict[str, Adapter]:
        """The adapters of one part, by path."""
        return {module.path: adapter for module, adapter in self.adapters.items() if module.part == part}

    def delta(self, module: tuple[str, str], weight: Tensor | None = None) -> Tensor:
        """W' - W of one module at strength 1.

        Args:
            module: (part, path).
            weight: W (out, in) or (out, in, k, k); DoRA cannot do without.

        Returns:
            float32, in the shape of `weight` where that is given.

        Raises:
            InputError: no such module here, a weight that does not fit, or one that is needed and not given.
        """
        module = ModuleName(*module)
        if module not in self.adapters:
            raise UnknownNameError("module of this LoRA", str(module), map(str, self.adapters))
        try:
            return self.adapters[module].delta(weight)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
