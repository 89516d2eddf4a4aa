"""A LoRA in memory, and what can be asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError
from .adapter import PARTS, Adapter, ModuleName

if TYPE_CHECKING:
    from .fuse import Applied

BASES = "sd15", "sd21", "sdxl"


@dataclass(eq=False)
class Lora:
    """Adapters by module.

    Args:
        adapters: what is added to each module's weight; ranks and strengths may differ.
        metadata: the file header's text entries, without those that describe the file's layout.
        base: "sd15", "sd21" or "sdxl" where known; it decides kohya's names.
        bundled: tensors that A1111 allows in the same file, `bundle_emb.*` (token embeddings); kept as they are.
        errors: relative Frobenius error of each module's delta, where a tool had to approximate.
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
        if self.base is not None and self.base not in BASES:
            raise UnknownNameError("base model", self.base, BASES)
        if not self.adapters:
            raise InputError("there is no adapter in it")

    def __repr__(self) -> str:
        kinds = Counter(adapter.kind + ("+dora" if "dora" in adapter.tensors else "") for adapter in self)
        ranks = sorted({adapter.rank for adapter in self})
        what = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"Lora({what}; ranks {', '.join(map(str, ranks))}; {', '.join(self.parts)})"

    def __iter__(self):
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

    def delta(self, module: tuple[str, str], weight: Tensor | None = None) -> Tensor:
        """W' - W of one module at strength 1, float32, in the shape of `weight`, which DoRA needs.

        Raises:
            InputError: no such module here, a weight that does not fit, or DoRA without a weight.
        """
        module = ModuleName(*module)
        if module not in self.adapters:
            raise UnknownNameError("module of this LoRA", str(module), map(str, self.adapters))
        try:
            return self.adapters[module].delta(weight)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None

    def apply(self, models: Any, strength: float = 1.0) -> Applied:
        """Add the LoRA to the weights of a pipeline, or of `{"unet": model, ...}`; `.undo()` takes it out, exactly.

        DoRA too is scaled as a whole: W + strength * (W' - W).

        Raises:
            InputError: a module that the base lacks or that does not fit; nothing is changed then.
        """
        from .fuse import apply

        return apply(models, [(self, strength)])

    def with_one_alpha(self) -> Lora:
        """The same LoRA with one alpha for each part, the factors moved into `up`.

        Diffusers' reader of kohya files gives every module the alpha that most have (its alpha patterns keep the
        tensor's name and match no module).
        """
        usual = {
            part: Counter(a.alpha for module, a in self.adapters.items() if module.part == part).most_common(1)[0][0]
            for part in self.parts
        }
        adapters = {m: _with_alpha(m, adapter, usual[m.part]) for m, adapter in self.adapters.items()}
        return replace(self, adapters=adapters)

    def save(
        self,
        path: str | Path,
        format: str = "diffusers",
        *,
        dtype: torch.dtype | None = None,
        base: str | None = None,
        metadata: Mapping[str, str] | None = None,
        keep_alphas: bool = False,
    ) -> str:
        """Write a .safetensors file that is whole or not there. Returns a sentence on values that became 0, or "".

        Args:
            format: "diffusers", which keeps all strengths in its header; or "kohya", which A1111, ComfyUI and
                Diffusers read.
            dtype: the type of the factors; None keeps them as they are.
            base: "sd15", "sd21" or "sdxl"; None is the LoRA's own, or what its modules tell.
            metadata: entries of the header, over those of `self.metadata`.
            keep_alphas: kohya only: write mixed alphas as they are. Diffusers would read them wrongly, so that
                otherwise each part gets one alpha (`with_one_alpha`).

        Raises:
            InputError: the format cannot hold it, a value does not fit `dtype`, the base cannot be told, or the file
                cannot be written.
        """
        from .formats import diffusers as diffusers_format
        from .formats import kohya
        from .formats.files import cast, write_tensors

        path = Path(path)
        if path.suffix != ".safetensors":
            raise InputError(f"{path}: LoRAs are written as .safetensors only")
        lora = replace(self, metadata={**self.metadata, **(metadata or {})}, base=base or self.base)
        if format == "kohya":
            lora = lora if keep_alphas else lora.with_one_alpha()
            tensors, note = cast(kohya.tensors_of(lora), dtype)
            header = kohya.header_of(lora, tensors, path.stem, metadata or {})
        elif format == "diffusers":
            tensors, note = cast(diffusers_format.tensors_of(lora), dtype)
            header = diffusers_format.header_of(lora)
        else:
            raise UnknownNameError("LoRA format", format, ("diffusers", "kohya"))
        write_tensors(path, tensors, header)
        return note


def _with_alpha(module: ModuleName, adapter: Adapter, alpha: float) -> Adapter:
    if adapter.kind != "lora" or adapter.alpha == alpha or not alpha:
        return adapter
    up = (adapter.up.detach().float() * (adapter.alpha / alpha)).to(adapter.up.dtype)
    if not up.isfinite().all():
        raise InputError(f"{module}: up does not fit {up.dtype} with alpha {alpha:g}; keep the alphas as they are")
    return Adapter(adapter.kind, {**adapter.tensors, "up": up}, alpha)


def common(values: Sequence[float]) -> str:
    """One number for all, or "Dynamic", as kohya's tools write it."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "Dynamic"
