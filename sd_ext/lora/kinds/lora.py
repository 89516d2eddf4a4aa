"""LoRA: delta = alpha / rank * up @ down (Hu et al. 2021, arXiv:2106.09685, section 4.1).

`down` is (rank, in) and `up` (out, rank); of a convolution (rank, in, k, k) and (out, rank, 1, 1). LyCORIS's
convolutions may be of three factors: `down` (rank, in, 1, 1), `mid` (rank, rank, k, k), `up`; two are written.

peft's `lora_B.bias` is added to the bias at the same scale. ComfyUI's `reshape_weight`, the shape that it widens the
base's weight to with zeros, is not kept: here the base has that shape already, or is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .kind import Kind, Tensors

if TYPE_CHECKING:
    from torch import Size, Tensor


KOHYA = {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid", "reshape_weight": "wide"}
DOTTED = {
    "lora_A.weight": "down", "lora_B.weight": "up",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_B.bias": "up_bias", "reshape_weight": "wide",
}  # fmt: skip


class LoraKind(Kind):
    """LoRA, also of convolutions ("LoCon"), with any scaling, including the rank-stabilised one."""

    name = "lora"
    factors = (frozenset({"down", "up"}), frozenset({"down", "mid", "up"}))
    kohya = KOHYA
    dotted = DOTTED
    in_diffusers = True
    plain = True
    network = "networks.lora"
    peft_type = "LORA"
    options = frozenset({"init", "rslora", "lora_plus"})

    def product(self, tensors: Tensors) -> Tensor:
        up, down = tensors["up"], folded(tensors)
        return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])

    def rank(self, tensors: Tensors) -> int:
        return tensors["down"].shape[0]

    def two_factors(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        ready = {name: tensor.detach().float() for name, tensor in tensors.items()}
        return ready["up"].flatten(1), folded(ready).flatten(1)

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor]:
        up = tensors["up"]
        return {**tensors, "up": (up.detach().float() * factor).to(up.dtype)}

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        up, down, mid = tensors["up"], tensors["down"], tensors.get("mid")
        if up.ndim != down.ndim or any(side != 1 for side in up.shape[2:]):
            raise InputError(f"tensors do not fit together: down {tuple(down.shape)}, up {tuple(up.shape)}")
        if mid is not None and (mid.ndim != 4 or any(side != 1 for side in down.shape[2:])):
            raise InputError(f"tensors do not fit together: lora_mid {tuple(mid.shape)}, down {tuple(down.shape)}")

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        """Give both factors the same dimensions: DyLoRA's files have `up` as (out, r) of convolutions too."""
        made = {name: tensor for name, tensor in tensors.items() if name not in ("up_bias", "wide")}
        if {"up", "down"} <= made.keys() and made["up"].ndim == 2 < made["down"].ndim:
            made["up"] = made["up"].reshape(*made["up"].shape, *[1] * (made["down"].ndim - 2))
        if "wide" in tensors and {"up", "down"} <= made.keys():
            wide, own = tuple(tensors["wide"].flatten().tolist()), (made["up"].shape[0], *folded(made).shape[1:])
            if wide != own:
                raise InputError(f"reshape_weight widens to {wide}, and its factors are for {own}")
        return made

    def of_bias(self, tensors: Tensors, scale: float) -> tuple[str, dict[str, Tensor]] | None:
        if "up_bias" not in tensors:
            return None
        if "magnitude" in tensors:
            raise InputError("is a DoRA with a bias (lora_B.bias), which peft trains otherwise than it merges it")
        bias = tensors["up_bias"]
        return "diff", {"diff": (bias.detach().float() * scale).to(bias.dtype)}

    def for_kohya(self, tensors: Tensors, of: str = "weight") -> dict[str, Tensor]:
        return super().for_kohya(in_two(tensors), of)

    def for_diffusers(self, tensors: Tensors, part: str) -> dict[str, Tensor]:
        return super().for_diffusers(in_two(tensors), part)

    def from_training(self, tensors: dict[str, Tensor], alpha: float, rank: int) -> tuple[dict[str, Tensor], float]:
        return tensors, alpha  # unchanged, since a LoRA has exactly the configured rank

    def peft_config(self, shared: dict[str, Any], alpha: float, init: str | bool, settings: Any, **more: Any) -> Any:
        from peft import LoraConfig

        known: dict[str, Any] = {"lora_alpha": alpha, "lora_dropout": settings.dropout, "use_rslora": settings.rslora}
        return LoraConfig(**shared, **known, **more, init_lora_weights=init)  # type: ignore[arg-type]


def folded(tensors: Tensors) -> Tensor:
    """`down` (rank, in, ...); where there is a `mid`, its product with that, (rank, in, k, k), in its own dtype."""
    import torch

    down, mid = tensors["down"], tensors.get("mid")
    return down if mid is None else torch.einsum("rskl,si->rikl", mid, down.flatten(1))


def in_two(tensors: Tensors) -> dict[str, Tensor]:
    """A LoRA's tensors with two factors, which every program reads, in the same dtype."""
    if "mid" not in tensors:
        return dict(tensors)
    ready = {name: tensor.detach().float() for name, tensor in tensors.items()}
    made = {name: tensor for name, tensor in tensors.items() if name != "mid"}
    return {**made, "down": folded(ready).to(tensors["down"].dtype)}
