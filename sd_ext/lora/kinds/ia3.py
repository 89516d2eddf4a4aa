"""(IA)^3: W' = W with each output, or each input, times a learned factor (arXiv:2205.05638).

`gains` is what is added to the factor 1: (out, 1) or (1, in), followed by ones up to the weight's dimensions. LyCORIS
stores it as `weight`, with `on_input` saying which; peft stores 1 + gains as `ia3_l`, and its factors of outputs apply
to the bias too. Of a convolution, peft's are (1, n, 1, 1) in both cases, and its settings say which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .given_weight import GivenWeight
from .kind import Tensors

if TYPE_CHECKING:
    from torch import Size, Tensor


class Ia3Kind(GivenWeight):
    """(IA)^3, as LyCORIS and peft define it."""

    name = "ia3"
    factors = (frozenset({"gains"}),)
    kohya = {"weight": "weight", "on_input": "on_input"}  # noqa: RUF012
    dotted = {**kohya, "ia3_l": "factors"}  # noqa: RUF012
    has_alpha = False
    peft_type = "IA3"

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        gains = tensors["gains"]
        if weight.ndim == 1:
            return weight * (1 + gains.flatten())
        return weight * (1 + gains.reshape(*gains.shape[:2], *[1] * (weight.ndim - 2)))

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        gains = tensors["gains"]
        if gains.ndim < 2 or gains.numel() != max(gains.shape[:2]):
            raise InputError(f"gains are {tuple(gains.shape)}, neither (out, 1) nor (1, in)")

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        gains = tensors["gains"].shape
        if (gains[0], gains[1]) not in ((shape[0], 1), (1, shape[1] if len(shape) > 1 else 0)):
            raise InputError(f"made of {tuple(gains)} factors, and the base's weight is {tuple(shape)}")

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor]:
        return {"gains": (tensors["gains"].detach().float() * factor).to(tensors["gains"].dtype)}

    def configured(self, tensors: Tensors, settings: Mapping[str, Any], path: str) -> dict[str, Tensor]:
        factors = tensors.get("factors")
        if factors is None or factors.ndim < 3:
            return dict(tensors)
        inputs = settings.get("feedforward_modules") or ()
        on_input = re.fullmatch(inputs, path) if isinstance(inputs, str) else path.endswith(tuple(map(str, inputs)))
        made = {name: tensor for name, tensor in tensors.items() if name != "factors"}
        return {**made, "inputs" if on_input else "outputs": factors}

    def of_bias(self, tensors: Tensors, scale: float) -> tuple[str, dict[str, Tensor]] | None:
        found = {name: tensors[name] for name in ("factors", "outputs") if name in tensors}
        made = self.complete(found).get("gains") if found else None
        return None if made is None or made.shape[0] == 1 else (self.name, {"gains": made})

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        made = dict(tensors)
        if "factors" in made and made["factors"].ndim > 2:
            raise InputError("peft's (IA)^3 of a convolution needs its adapter_config.json, which is not beside it")
        for name in {"factors", "inputs", "outputs"} & made.keys():
            factors = made.pop(name)
            gains = (factors.float() - 1).to(factors.dtype)
            made["gains"] = gains.transpose(0, 1) if name == "outputs" else gains
        if {"weight", "on_input"} <= made.keys():
            given, on_input = made.pop("weight"), bool(made.pop("on_input").any())
            size = (1, given.numel()) if on_input else (given.numel(), 1)
            made["gains"] = given.reshape(*size, *[1] * max(0, given.ndim - 2))
        return made

    def for_kohya(self, tensors: Tensors, of: str = "weight") -> dict[str, Tensor]:
        import torch

        gains = tensors["gains"]
        if of != "weight":
            return super().for_kohya(tensors, of)
        on_input = gains.shape[0] == 1
        given = gains.reshape(1, -1, *gains.shape[2:]) if gains.ndim > 2 else gains.flatten()
        return {"weight": given, "on_input": torch.tensor(int(on_input))}
