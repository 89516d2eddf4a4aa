"""One sampling run: a table being executed. The only place where tensors are touched.

`Run` holds what belongs to a run and not to a configuration: the position, the predictions kept and the stash. Rows are
compiled to Python floats before the first call, with the prediction type folded in and zero weights dropped, so that a
call is a few scaled additions with no synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .noise import BrownianNoise
from .prediction import Hook, linear_map
from .table import P0, STASH, Table, X

# Where a compiled weight finds its tensor.
AT_X, AT_M, AT_STASH, AT_NOISE, AT_PAST = range(5)

Weights = tuple[tuple[int, float], ...]
"""(place, weight) pairs, zero weights left out."""


@dataclass(frozen=True)
class Call:
    """One call compiled for a prediction type.

    Args:
        alpha, sigma: the level.
        x: weights of x'.
        stash: weights of stash'; None leaves the stash as it is.
        keep: what later calls need of p0: None, nothing; "m", the network's output itself; or mu, x + mu m. The scale
            that is missing to p0 is in the weights of the later calls, which saves a pass over memory.
        noisy: whether a weight of noise is not zero.
    """

    alpha: float
    sigma: float
    x: Weights
    stash: Weights | None
    keep: float | str | None
    noisy: bool


def compile_calls(table: Table, prediction_type: str, hooked: bool) -> list[Call]:
    """The calls of a table for a network of the given prediction type.

    With a hook p0 is computed before the row and stands in the place of m, so nothing is folded into x.
    """
    rows, levels = table.rows, table.levels
    reads = [(0.0, 1.0)] * table.calls
    if not hooked:
        where = zip(levels.alpha[:-1].tolist(), levels.sigma[:-1].tolist(), strict=True)
        reads = [linear_map(prediction_type, table.basis, alpha, sigma) for alpha, sigma in where]
    scales = [cx if cx else cm for cx, cm in reads]

    def fold(i: int, row: np.ndarray) -> Weights:
        cx, cm = reads[i]
        past = [row[P0 + j] * scales[i - j] for j in range(1, table.history) if i - j >= 0]
        weights = enumerate([row[X] + row[P0] * cx, row[P0] * cm, row[STASH], row[-1], *past])
        return tuple((place, float(weight)) for place, weight in weights if weight) or ((AT_X, 0.0),)

    calls = []
    for i, (x_row, stash_row) in enumerate(rows):
        kept = any(rows[j, :, P0 + j - i].any() for j in range(i + 1, min(i + table.history, table.calls)))
        (cx, cm), steady = reads[i], np.zeros_like(stash_row)
        steady[STASH] = 1.0
        stash_read = rows[i + 1 :, :, STASH].any()
        calls.append(
            Call(
                alpha=float(levels.alpha[i]),
                sigma=float(levels.sigma[i]),
                x=fold(i, x_row),
                stash=None if np.array_equal(stash_row, steady) or not stash_read else fold(i, stash_row),
                keep=None if not kept else cm / cx if cx else "m",
                noisy=bool(rows[i, :, -1].any()),
            )
        )
    return calls


def weighted_sum(weights: Weights, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """sum of weight * tensor: one product and an in-place scaled addition per further term; a new tensor, save where
    the sum is one tensor as it is.
    """
    place, weight = weights[0]
    if weight == 1.0 and len(weights) == 1:
        return tensors[place]
    total = tensors[place] * weight
    for place, weight in weights[1:]:
        total.add_(tensors[place], alpha=weight)
    return total


class Run:
    """The state of one run of a table.

    Args:
        table: what to run.
        prediction_type: what the network predicts.
        hook: elementwise map of the x0 prediction, or None.
        begin: number of announced calls left out before the table's first one.
    """

    def __init__(self, table: Table, prediction_type: str, hook: Hook | None = None, begin: int = 0):
        self.table, self.prediction_type, self.hook, self.begin = table, prediction_type, hook, begin
        self.calls = compile_calls(table, prediction_type, hook is not None)
        self.position, self.depth = 0, table.history - 1
        self.stash: torch.Tensor | None = None
        self.past: tuple[torch.Tensor, ...] = ()
        """What is kept of p1, p2, ..., newest first."""
        self.path: BrownianNoise | None = None
        """Where the noise comes from, if not from fresh draws."""

    def denoised(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """The x0 prediction, the hook applied."""
        cx, cm = linear_map(self.prediction_type, "x0", call.alpha, call.sigma)
        x0 = weighted_sum(((0, cx), (1, cm)), (x, m))
        return x0 if self.hook is None else self.hook(x0)

    def advance(self, x: torch.Tensor, m: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Execute the next call and return x'.

        Args:
            x: the latent at this call's level, float32 or float64.
            m: the network's output for it, of the same shape and dtype.
            noise: N(0, I) of that shape, for a noisy call.
        """
        call = self.calls[self.position]
        if self.hook is not None:
            x0 = self.denoised(call, x, m)
            m = x0 if self.table.basis == "x0" else (x - call.alpha * x0) / call.sigma
        tensors = (x, m, self.stash, noise, *self.past)
        previous = weighted_sum(call.x, tensors)  # type: ignore[arg-type]
        if call.stash is not None:
            self.stash = weighted_sum(call.stash, tensors)  # type: ignore[arg-type]
        if self.depth:
            self.past = (self._kept(call, x, m), *self.past[: self.depth - 1])
        self.position += 1
        return previous

    def _kept(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """What later calls need of p0; written over the oldest prediction kept, which this call was the last to
        read.
        """
        if not isinstance(call.keep, float):
            return m
        oldest = self.position - self.depth
        if oldest < 0 or not isinstance(self.calls[oldest].keep, float) or x.requires_grad or m.requires_grad:
            return torch.add(x, m, alpha=call.keep)
        if self.past[-1].shape != x.shape:  # a batch that grew in the middle of a run
            return torch.add(x, m, alpha=call.keep)
        return torch.add(x, m, alpha=call.keep, out=self.past[-1])
