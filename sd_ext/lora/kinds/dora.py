"""DoRA: W' = m (W + delta) / ||W + delta||, with the delta of any other kind (arXiv:2402.09353, equation 5).

The magnitudes m are the tensor `dora`: (out, 1), one for each output, or as LyCORIS first wrote it (1, in), one for
each input, followed by any number of ones; or (out,) alone. The norm is taken over all other axes of the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .kind import NEEDED, Kind, Tensors, spelled
from .lora import LoraKind

if TYPE_CHECKING:
    from torch import Size, Tensor


KOHYA = {"dora_scale": "dora"}
DOTTED = {**KOHYA, "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude"}
LYCORIS = {"dora_wd": True, "wd_on_output": True}


class DoraKind(Kind):
    """DoRA over another kind.

    Args:
        inner: the kind that computes delta; None is LoRA, the kind that is trained under the name "dora".
    """

    name = "dora"
    beside = "dora"
    kohya = KOHYA
    dotted = DOTTED
    flag = "use_dora"
    network_args = LYCORIS
    options = LoraKind.options
    contiguous = True

    def __init__(self, inner: Kind | None = None):
        self.inner = inner or LoraKind()
        if inner is not None:
            self.name = f"{inner.name}+{self.name}"
        self.factors = tuple(tensors | {self.beside} for tensors in self.inner.factors) if inner else ()
        self.in_diffusers = self.inner.in_diffusers

    def over(self, kind: Kind) -> DoraKind:
        return DoraKind(kind)

    # How it changes W.

    def product(self, tensors: Tensors) -> Tensor:
        """The product of the inner kind."""
        return self.inner.product(tensors)

    def rank(self, tensors: Tensors) -> int:
        return self.inner.rank(tensors)

    def scale(self, tensors: Tensors, alpha: float) -> float:
        return self.inner.scale(tensors, alpha)

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        if weight is None:
            raise InputError(f"what DoRA adds {NEEDED}")
        weight = weight.detach().float()
        return self._rescaled(tensors["dora"], weight + self.inner.delta(tensors, scale, weight)) - weight

    def _rescaled(self, magnitudes: Tensor, weight: Tensor) -> Tensor:
        """`weight` with its norms, along the axis that the magnitudes are for, replaced by the magnitudes."""
        import torch

        axis = _axis(magnitudes, weight.shape)
        others = [i for i in range(weight.ndim) if i != axis]
        norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return weight * (magnitudes.to(weight).reshape(norms.shape) / norms)

    def decisive(self, tensors: Tensors, scale: float) -> list[Tensor]:
        return [*self.inner.decisive(tensors, scale), tensors["dora"]]

    def rank_stabilised(self, tensors: Tensors, alpha: float) -> tuple[dict[str, Tensor], float] | None:
        return self.inner.rank_stabilised(tensors, alpha)

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor] | None:
        return self.inner.stronger(tensors, factor)

    # Shapes.

    def shape(self, tensors: Tensors) -> Size | None:
        return self.inner.shape(tensors)

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        if shape is not None:
            _axis(tensors["dora"], shape, flattened=True)
        self.inner.check(tensors, shape)

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        self.inner.check_weight(tensors, shape)
        _axis(tensors["dora"], shape)

    # Files and models.

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        """Convert peft's magnitudes, (out,) or for a convolution (1, out, 1, 1), to (out, 1) or (out, 1, 1, 1)."""
        made = dict(tensors)
        if "magnitude" in made:
            given = made.pop("magnitude")
            made["dora"] = given.reshape(-1, *[1] * (made["up"].ndim - 1)) if "up" in made else given
        return made

    def for_kohya(self, tensors: Tensors, of: str = "weight") -> dict[str, Tensor]:
        return {**self.inner.for_kohya(tensors, of), **spelled(KOHYA, tensors)}

    def for_diffusers(self, tensors: Tensors, part: str) -> dict[str, Tensor]:
        made, dora = self.inner.for_diffusers(tensors, part), tensors["dora"]
        shape = self.shape(tensors)
        if shape is not None and _axis(dora, shape, flattened=True) == 1:
            raise InputError("has DoRA over its inputs, which Diffusers cannot read; write kohya's format")
        # transformers 5 loads a text encoder's magnitudes only from keys that end in `.weight`.
        key = "lora_magnitude_vector" if part == "unet" else "lora_magnitude_vector.weight"
        return {**made, key: dora.reshape(1, -1, 1, 1) if dora.ndim == 4 else dora.flatten()}  # as peft keeps them

    def from_training(self, tensors: dict[str, Tensor], alpha: float, rank: int) -> tuple[dict[str, Tensor], float]:
        return self.inner.from_training(tensors, alpha, rank)

    def peft_config(self, shared: dict[str, Any], alpha: float, init: str | bool, settings: Any) -> Any:
        return LoraKind().peft_config(shared, alpha, init, settings, use_dora=True)


def _axis(magnitudes: Tensor, shape: Size, flattened: bool = False) -> int:
    """The axis of a weight of this shape that the magnitudes are for: 0 outputs, 1 inputs.

    Args:
        magnitudes: all in one dimension of theirs, the others being one.
        shape: the weight's.
        flattened: whether `shape` may be (out, in * k * k) of a convolution.

    Raises:
        InputError: they fit neither.
    """
    count, place = magnitudes.numel(), next((i for i, side in enumerate(magnitudes.shape) if side != 1), 0)
    if count == max(magnitudes.shape, default=1) and len(shape) > 1:
        fits = [count == shape[0], count == shape[1] or (flattened and not shape[1] % count and place == 1)]
        if any(fits):
            likely = 0 if place == 0 else 1
            return likely if fits[likely] else 1 - likely
    raise InputError(f"dora {tuple(magnitudes.shape)} does not fit a weight of {tuple(shape)}")
