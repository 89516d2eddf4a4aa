"""OFT and BOFT of the inputs, as peft trains them: W' = s W R^T (arXiv:2306.07280, arXiv:2311.06243).

LyCORIS and kohya's trainer turn the outputs (`oft`). Of OFT, peft stores what is above the diagonal of each block's Q,
Q^T = -Q, and its settings say how R follows from it: (I - Q) (I + Q)^-1, or by default the first terms of the series of
(I + Q) (I - Q)^-1. So `turns` (blocks, b, b), or one block for all inputs, is computed when a file is read. Of BOFT it
stores B (stages, blocks, b, b), with Q = (B - B^T) / 2, and s (out, 1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .given_weight import GivenWeight
from .kind import AS_PLAIN, Tensors, one
from .oft import cayley, diagonal

if TYPE_CHECKING:
    from torch import Size, Tensor


SAME_SERIES = 0, 18  # the first version of peft with the series as it is here; it is the first that says its version


class OfInputs(GivenWeight):
    """What both have in common: no format of files but peft's own has names for them."""

    has_alpha = False

    def for_kohya(self, tensors: Tensors, of: str = "weight") -> dict[str, Tensor]:
        raise InputError(
            f"is {one(self.name)}, for which only peft's own folders have names; {AS_PLAIN.format('--base-model')}"
        )

    def for_diffusers(self, tensors: Tensors, part: str) -> dict[str, Tensor]:
        return self.for_kohya(tensors)


class OftInputsKind(OfInputs):
    """OFT of the inputs of linear layers and 1 x 1 convolutions."""

    name = "oft-inputs"
    factors = (frozenset({"turns"}),)
    dotted = {"oft_R.weight": "above"}  # noqa: RUF012
    peft_type = "OFT"

    def configured(self, tensors: Tensors, settings: Mapping[str, Any], path: str) -> dict[str, Tensor]:
        made = dict(tensors)
        if "above" in made:
            made["turns"] = turned(made.pop("above"), settings)
        return made

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        if "above" in tensors:
            raise InputError("peft's OFT cannot be computed without its adapter_config.json, which is not beside it")
        return dict(tensors)

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        turns, columns = tensors["turns"], weight.flatten(1).T
        return diagonal(turns.expand(len(columns) // turns.shape[-1], -1, -1), columns).T

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        turns = tensors["turns"]
        if turns.ndim != 3 or turns.shape[1] != turns.shape[2]:
            raise InputError(f"turns are {tuple(turns.shape)}, not (blocks, b, b)")

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        (blocks, size, _), inputs = tensors["turns"].shape, shape[1] if len(shape) > 1 else 0
        if shape[2:].numel() > 1:
            raise InputError(
                f"peft's OFT of a convolution of {tuple(shape)} turns patches of the picture and no weight; only those "
                "of linear layers and 1 x 1 convolutions can be used"
            )
        if inputs != blocks * size and not (blocks == 1 and inputs and not inputs % size):
            raise InputError(f"made for a weight of {blocks * size} inputs, and the base has {tuple(shape)}")


class BoftInputsKind(OfInputs):
    """BOFT of the inputs; of a convolution, of its in * k * k."""

    name = "boft-inputs"
    factors = (frozenset({"blocks", "scales"}), frozenset({"blocks"}))
    dotted = {"boft_R": "blocks", "boft_s": "scales"}  # noqa: RUF012
    peft_type = "BOFT"

    def outputs(self, tensors: Tensors) -> int | None:
        return tensors["scales"].numel() if "scales" in tensors else None

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        blocks, rows = tensors["blocks"], weight.flatten(1).T
        turns = cayley((blocks.mT - blocks) / 2)
        for stage, turn in enumerate(turns):
            place = _places(stage, turn.shape[0], turn.shape[-1], len(turns)).to(rows.device)
            moved = rows.new_empty(rows.shape)
            moved[place] = rows
            rows = diagonal(turn, moved)[place]
        after = rows.T
        return after * tensors["scales"].reshape(-1, 1) if "scales" in tensors else after

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        blocks = tensors["blocks"]
        if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3]:
            raise InputError(f"blocks are {tuple(blocks.shape)}, not (stages, blocks, b, b)")
        stages, count, size = blocks.shape[:3]
        if stages > 1 and (size % 2 or count % 2 ** (stages - 1)):
            raise InputError(f"{stages} stages cannot mix {count} blocks of {size} x {size}")

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        super().check_weight(tensors, shape)
        inputs = tensors["blocks"].shape[1] * tensors["blocks"].shape[2]
        if len(shape) < 2 or shape[1:].numel() != inputs:
            raise InputError(f"made for a weight of {inputs} inputs, and the base has {tuple(shape)}")


def turned(above: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The blocks of R.

    Args:
        above: (blocks, b (b - 1) / 2), what is above the diagonal of each Q, row by row.
        settings: peft's: `use_cayley_neumann`, `num_cayley_neumann_terms`; with `coft`, `eps` is the largest norm of Q.

    Returns:
        (blocks, b, b), float32.

    Raises:
        InputError: there are no such blocks, or the series is that of peft before 0.18, which was another.
    """
    import torch

    count = above.shape[-1]
    size = (1 + round((1 + 8 * count) ** 0.5)) // 2
    if above.ndim != 2 or size * (size - 1) // 2 != count:
        raise InputError(f"oft_R is {tuple(above.shape)}, which is not above the diagonal of square blocks")
    skew = torch.zeros(len(above), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns] = above.detach().float()
    skew = skew - skew.mT
    if settings.get("coft"):
        limit = float(settings.get("eps", 6e-5)) / len(above) ** 0.5
        norms = torch.linalg.matrix_norm(skew, keepdim=True)
        skew = torch.where(norms <= limit, skew, skew * (limit / norms))
    if not settings.get("use_cayley_neumann"):
        return cayley(-skew)
    version = re.match(r"(\d+)\.(\d+)", str(settings.get("peft_version", "")))
    if version is None or (int(version[1]), int(version[2])) < SAME_SERIES:
        raise InputError("this OFT was trained with peft before 0.18, which computed use_cayley_neumann otherwise")
    return _series(skew, int(settings.get("num_cayley_neumann_terms", 5)))


def _series(skew: Tensor, terms: int) -> Tensor:
    """I + 2 Q + 2 Q^2 + ... + Q^n, as peft counts terms: I for 1, I + 2 Q for 2, else n is terms - 1, at least 3."""
    import torch

    one = torch.eye(skew.shape[-1]).expand_as(skew)
    if terms < 3:
        return one + 2 * skew * (terms == 2)
    made, power, last = one, one, max(3, terms - 1)
    for number in range(1, last + 1):
        power = power @ skew
        made = made + power * (1 if number == last else 2)
    return made


def _places(stage: int, blocks: int, size: int, stages: int) -> Tensor:
    """Where each input goes in a stage: of 2^(stage + 1) halves of blocks, the even ones come before the odd ones."""
    import torch

    if stages == 1:
        return torch.arange(blocks * size)
    half = size // 2
    order = torch.arange(2 ** (stage + 1)).reshape(-1, 2).T.flatten()
    inside = (order[:, None] * half + torch.arange(half)).flatten()
    starts = torch.arange(0, blocks * size, len(inside))
    return (starts[:, None] + inside).flatten()
