"""One module's adapter: what is added to its weight.

    LoRA    delta = scale * up @ down                               (Hu et al. 2021, arXiv:2106.09685, section 4.1)
    LoHa    delta = scale * (w1_a @ w1_b) * (w2_a @ w2_b)           (FedPara, arXiv:2108.06098, equation 2)
    LoKr    delta = scale * kron(w1, w2)                            (LyCORIS, arXiv:2309.14859, section 3.1)
    DoRA    W' = m (W + delta) / ||W + delta||, over any of them    (arXiv:2402.09353, equation 5)

with scale = alpha / rank. A convolution's weight (out, in, k, k) is a matrix (out, in * k * k), or for LoHa and LoKr
a Tucker product with a core t of (rank, rank, k, k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

PARTS = "unet", "text_encoder", "text_encoder_2"
# The sets of tensors each kind can be made of; "dora" may come with any.
FACTORS: dict[str, tuple[frozenset[str], ...]] = {
    "lora": (frozenset({"down", "up"}),),
    "loha": tuple(
        frozenset({"w1_a", "w1_b", "w2_a", "w2_b", *core}) for core in ((), ("t1", "t2"))
    ),
    "lokr": tuple(
        frozenset({*first, *second})
        for first in (("w1",), ("w1_a", "w1_b"))
        for second in (("w2",), ("w2_a", "w2_b"), ("w2_a", "w2_b", "t2"))
    ),
}  # fmt: skip


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
    """What is added to one weight.

    Args:
        kind: "lora", "loha" or "lokr".
        tensors: by name. LoRA: `down` (rank, in) and `up` (out, rank), for a convolution (rank, in, k, k) and
            (out, rank, 1, 1). LoHa: `w1_a` (out, rank), `w1_b` (rank, in), `w2_a`, `w2_b`; with cores `t1`, `t2`
            (rank, rank, k, k) the `_a` are (rank, out). LoKr: `w1` or `w1_a`, `w1_b`; `w2` or `w2_a`, `w2_b` with or
            without `t2`. DoRA: `dora`, (out, 1) or (1, in), followed by ones up to the weight's dimensions.
        alpha: strength; the product is multiplied by alpha / rank.

    Raises:
        InputError: tensors that are missing, do not fit together, or are not finite.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    alpha: float

    def __post_init__(self) -> None:
        given = set(self.tensors) - {"dora"}
        if given not in FACTORS.get(self.kind, ()):
            raise InputError(f"a {self.kind} cannot be made of {', '.join(sorted(given)) or 'nothing'}")
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
        if "dora" in self.tensors and not self._dora_fits(shape):
            raise InputError(f"dora {tuple(self.tensors['dora'].shape)} does not fit a weight of {tuple(shape)}")
        if self.kind == "lora" and (self.up.ndim != self.down.ndim or any(side != 1 for side in self.up.shape[2:])):
            raise InputError(f"tensors do not fit together: down {tuple(self.down.shape)}, up {tuple(self.up.shape)}")

    def _dora_fits(self, shape: torch.Size) -> bool:
        dora = self.tensors["dora"]
        ones = all(side == 1 for side in dora.shape[2:])
        return dora.ndim >= 2 and ones and (dora.shape[:2] == (shape[0], 1) or dora.shape[0] == 1)

    @property
    def down(self) -> Tensor:
        return self.tensors["down"]

    @property
    def up(self) -> Tensor:
        return self.tensors["up"]

    @property
    def plain(self) -> bool:
        """Whether it is LoRA without DoRA: an exact, fixed low-rank matrix."""
        return self.kind == "lora" and "dora" not in self.tensors

    @property
    def rank(self) -> int:
        """The inner size; 0 for a LoKr of two whole factors, which has none."""
        t = self.tensors
        inner = {"lora": t.get("down"), "loha": t.get("w1_b"), "lokr": t.get("w2_b", t.get("w1_b"))}[self.kind]
        return 0 if inner is None else inner.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank; 1 where there is no rank, as LyCORIS and every reader has it."""
        return self.alpha / self.rank if self.rank else 1.0

    def product(self) -> Tensor:
        """What is added to the weight before any DoRA: float32, (out, in), (out, in, k, k) or (out, in * k * k)."""
        return self._factors(lambda tensor: tensor.detach().float()) * self.scale

    @property
    def shape(self) -> torch.Size:
        """What `product` has the shape of."""
        return self._factors(lambda tensor: tensor.detach().to("meta")).shape

    def check_weight(self, shape: torch.Size) -> None:
        """Raise `InputError` unless it fits a weight of this shape; a 1 x 1 convolution fits a linear layer."""
        own = self.shape
        if own.numel() != shape.numel() or own[0] != shape[0]:
            raise InputError(f"made for a weight of {tuple(own)}, and the base has {tuple(shape)}")
        if "dora" in self.tensors and self.tensors["dora"].numel() != shape[self._dora_axis(shape)]:
            raise InputError(f"dora {tuple(self.tensors['dora'].shape)} does not fit a weight of {tuple(shape)}")

    def _dora_axis(self, shape: torch.Size) -> int:
        return int(self.tensors["dora"].shape[0] != shape[0])

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """W' - W in float32, in the shape of `weight` where that is given; DoRA needs it for its value too.

        Raises:
            InputError: `weight` does not fit, or DoRA without `weight`.
        """
        if weight is None:
            if "dora" in self.tensors:
                raise InputError("DoRA rescales the base's weight, so that its delta depends on it; give the weight")
            return self.product()
        self.check_weight(weight.shape)
        weight = weight.detach().float()
        added = self.product().to(weight.device).reshape(weight.shape)
        return self._rescaled(weight + added) - weight if "dora" in self.tensors else added

    def _rescaled(self, weight: Tensor) -> Tensor:
        """m W / ||W||, the norm over all but the magnitudes' axis."""
        axis = self._dora_axis(weight.shape)
        others = [i for i in range(weight.ndim) if i != axis]
        norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        return weight * (self.tensors["dora"].to(weight).reshape(norms.shape) / norms)

    def _factors(self, see) -> Tensor:
        """The product of the factors, unscaled, each looked at through `see`."""
        t = {name: see(tensor) for name, tensor in self.tensors.items()}
        if self.kind == "lora":
            return (t["up"].flatten(1) @ t["down"].flatten(1)).reshape(t["up"].shape[0], *t["down"].shape[1:])
        if self.kind == "loha":
            return _matrix(t, "w1", "t1") * _matrix(t, "w2", "t2")
        w1, w2 = _matrix(t, "w1", "t1"), _matrix(t, "w2", "t2")
        return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)).contiguous(), w2.contiguous())


def _matrix(t: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """A factor that is stored whole, as a product, or as a Tucker product with a core."""
    if name in t:
        return t[name]
    a, b = t[f"{name}_a"], t[f"{name}_b"]
    return torch.einsum("ijkl,ip,jr->prkl", t[core], a, b) if core in t else a @ b
