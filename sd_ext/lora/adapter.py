"""One module's adapter: a few small tensors that stand for a change of the module's weight.

What the tensors are and how they make the change is the adapter's kind; see `sd_ext.lora.kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .kinds import Kind, kind_of

PARTS = "unet", "text_encoder", "text_encoder_2"


class ModuleName(NamedTuple):
    """A module of a pipeline: its part, one of `PARTS`, and its path there in Diffusers' names.

    A text encoder's path is given without `text_model.`, which transformers 5 has dropped.
    """

    part: str
    path: str

    def __str__(self) -> str:
        return f"{self.part}.{self.path}"


@dataclass(frozen=True, eq=False)
class Adapter:
    """What is added to one weight, (out, in) or of a convolution (out, in, k, k).

    Args:
        kind: "lora", "loha", "lokr", or what was registered (`sd_ext.lora.kinds`).
        tensors: by name, as the kind's file says: of LoRA `down` and `up`. DoRA is a further one, `dora`, beside those
            of any kind.
        alpha: strength; the product is multiplied by alpha / rank.

    Raises:
        InputError: an unknown kind; tensors that are missing, do not fit together, or are not finite.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    alpha: float

    def __post_init__(self) -> None:
        if set(self.tensors) not in self.rules.factors:
            given = ", ".join(sorted(self.tensors)) or "nothing"
            raise InputError(f"a {self.kind} cannot be made of {given}")
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha is {self.alpha}")
        for name, tensor in self.tensors.items():
            if not tensor.numel():
                raise InputError(f"{name} is empty: {tuple(tensor.shape)}")
            if not tensor.is_floating_point():
                raise InputError(f"{name} holds {tensor.dtype}, not floating-point numbers")
            if not tensor.is_meta and not tensor.isfinite().all():
                raise InputError(f"{name} holds values that are not finite")
        try:
            shape = self.shape
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.tensors.items())
            raise InputError(f"tensors do not fit together: {shapes}") from error
        self.rules.check(self.tensors, shape)

    @property
    def rules(self) -> Kind:
        """How adapters of this kind, with such tensors, work."""
        return kind_of(self.kind, self.tensors)

    @property
    def down(self) -> Tensor:
        """A LoRA's lower factor, (rank, in) or (rank, in, k, k)."""
        return self.tensors["down"]

    @property
    def up(self) -> Tensor:
        """A LoRA's upper factor, (out, rank) or (out, rank, 1, 1)."""
        return self.tensors["up"]

    @property
    def plain(self) -> bool:
        """Whether it is LoRA without DoRA: an exact, fixed low-rank matrix."""
        return self.rules.plain

    @property
    def rank(self) -> int:
        """The inner size; 0 for kinds, such as a LoKr of two whole factors, that have none."""
        return self.rules.rank(self.tensors)

    @property
    def scale(self) -> float:
        """What the product is multiplied by: alpha / rank; 1 where there is no rank."""
        return self.rules.scale(self.tensors, self.alpha)

    @property
    def shape(self) -> torch.Size | None:
        """The shape of the weight it is for, a convolution's as (out, in * k * k) or (out, in, k, k).

        None for kinds that fit weights of several shapes.
        """
        return self.rules.shape(self.tensors)

    @property
    def decisive(self) -> list[Tensor]:
        """Float tensors on which the change of any weight depends: adapters do the same where these are the same."""
        return self.rules.decisive(self.tensors, self.scale)

    def product(self) -> Tensor:
        """The factors' scaled product, which is what is added to the weight before any DoRA: float32, of `shape`.

        Raises:
            InputError: what a kind adds depends on the weight.
        """
        return self.rules.product({name: tensor.detach().float() for name, tensor in self.tensors.items()}) * self.scale

    def check_weight(self, shape: torch.Size) -> None:
        """Raise `InputError` unless it fits a weight of this shape; a 1 x 1 convolution fits a linear layer."""
        self.rules.check_weight(self.tensors, shape)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """W' - W in float32.

        Args:
            weight: W, of any dtype. Kinds whose change depends on it, such as DoRA, cannot do without.

        Returns:
            In the shape of `weight`, or without it in that of `shape`.

        Raises:
            InputError: `weight` does not fit, or is needed and not given.
        """
        if weight is not None:
            self.check_weight(weight.shape)
        return self.rules.delta(self.tensors, self.scale, weight)
