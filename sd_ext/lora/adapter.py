"""An adapter: a few small tensors that describe a change of one module's weight.

Which tensors these are, and how they make the change, depends on the adapter's kind; see `sd_ext.lora.kinds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .kinds import Kind, kind_of
from .kinds.kind import one

PARTS = "unet", "text_encoder", "text_encoder_2"


class ModuleName(NamedTuple):
    """A module of a pipeline: its part (one of `PARTS`) and its dotted path there, in Diffusers' naming.

    It stands for the module's weight; with `.bias` at the end of the path, for its bias. Paths in text encoders are
    without the prefix `text_model.`, which transformers 5 has dropped.
    """

    part: str
    path: str

    def __str__(self) -> str:
        return f"{self.part}.{self.path}"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A change of one weight W, of shape (out, in) or, for a convolution, (out, in, k, k); of a norm or bias, (n,).

    Args:
        kind: "lora", "loha", "lokr", "diff", or another registered kind (`sd_ext.lora.kinds`).
        tensors: the adapter's tensors by the names that its kind defines; `down` and `up` for LoRA. A further tensor
            `dora` beside those of any kind makes it DoRA over that kind.
        alpha: strength; the product of the factors is multiplied by alpha / rank. For OFT, what limits its angles.

    Raises:
        InputError: an unknown kind; or tensors that are missing, do not fit together, or are not finite.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    alpha: float

    def __post_init__(self) -> None:
        if set(self.tensors) not in self.rules.factors:
            given = ", ".join(sorted(self.tensors)) or "nothing"
            raise InputError(f"{one(self.kind)} cannot be made of {given}")
        if not math.isfinite(self.alpha):
            raise InputError(f"alpha is {self.alpha}")
        for name, tensor in self.tensors.items():
            if not tensor.numel():
                raise InputError(f"{name} is empty: {tuple(tensor.shape)}")
            if not tensor.is_floating_point() or tensor.element_size() < 2:  # scales, of which weights are not made
                raise InputError(f"{name} holds {tensor.dtype}, not floating-point numbers of 16 bits or more")
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
        """The `Kind` that defines what adapters with these tensors do."""
        return kind_of(self.kind, self.tensors)

    @property
    def down(self) -> Tensor:
        """A LoRA's factor `down`, (rank, in) or (rank, in, k, k)."""
        return self.tensors["down"]

    @property
    def up(self) -> Tensor:
        """A LoRA's factor `up`, (out, rank) or (out, rank, 1, 1)."""
        return self.tensors["up"]

    @property
    def plain(self) -> bool:
        """Whether this is LoRA without DoRA, so that its change is a low-rank matrix that does not depend on W."""
        return self.rules.plain

    @property
    def rank(self) -> int:
        """The inner size of the factors; 0 if there is none, such as for a LoKr of two whole factors."""
        return self.rules.rank(self.tensors)

    @property
    def scale(self) -> float:
        """The factor that the product is multiplied by: alpha / rank; 1 if there is no rank."""
        return self.rules.scale(self.tensors, self.alpha)

    @cached_property
    def shape(self) -> torch.Size | None:
        """The shape of the weight it is made for; for a convolution (out, in * k * k) or (out, in, k, k).

        None for kinds whose adapters fit weights of several shapes.
        """
        return self.rules.shape(self.tensors)

    @property
    def decisive(self) -> list[Tensor]:
        """Float tensors that determine the change of any weight: adapters with equal ones make the same change."""
        return self.rules.decisive(self.tensors, self.scale)

    def product(self) -> Tensor:
        """The scaled product of the factors, which is added to W (before DoRA rescales the sum).

        Returns:
            float32, of the shape `shape`.

        Raises:
            InputError: for this kind, what is added depends on W.
        """
        return self.rules.product({name: tensor.detach().float() for name, tensor in self.tensors.items()}) * self.scale

    def check_weight(self, shape: torch.Size) -> None:
        """Raise `InputError` unless it fits a weight of this shape.

        A 1 x 1 convolution and a linear layer fit each other.
        """
        self.rules.check_weight(self.tensors, shape)

    def pointwise(self) -> Adapter | None:
        """The same for a linear layer in place of a 1 x 1 convolution, or the other way round; None if it is neither.

        Only LoRA's factors, with or without DoRA, differ between the two.
        """
        if (
            self.kind != "lora"
            or "mid" in self.tensors
            or self.shape is None
            or any(side != 1 for side in self.shape[2:])
        ):
            return None
        ones = (1, 1) if len(self.shape) == 2 else ()
        made = {
            name: t.reshape(*t.shape[:2], *ones) if name in ("down", "up") else t for name, t in self.tensors.items()
        }
        return Adapter(self.kind, made, self.alpha)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change W' - W that the adapter makes.

        Args:
            weight: W, of any dtype. Required for kinds whose change depends on it, such as DoRA.

        Returns:
            float32, in the shape of `weight` if given, else in that of `shape`.

        Raises:
            InputError: `weight` does not fit, or is required and missing.
        """
        if weight is not None:
            self.check_weight(weight.shape)
        return self.rules.delta(self.tensors, self.scale, weight)
