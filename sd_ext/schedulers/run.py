"""One sampling run: a table being executed. The only place where tensors are touched.

`Run` holds what belongs to a run and not to a configuration: the position, the predictions kept and the stash. Rows are
compiled to Python floats before the first call, the prediction type folded in, so that a call is a few scaled additions
with no synchronisation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .prediction import Hook, linear_map
from .table import P0, STASH, Table, X

Term = tuple[torch.Tensor, float]


@dataclass(frozen=True)
class Call:
    """One call compiled for a prediction type: weights by tensor, for x' and stash'.

    Args:
        read: (cx, cm), p0 = cx x + cm m.
        x: (weight of x, of stash, of m, of noise) in x', with p0 folded into x and m.
        x_p: weights of p1, p2, ... in x'.
        stash, stash_p: the same for stash'; None where the stash is left alone.
        keep: whether a later call reads p0.
    """

    alpha: float
    sigma: float
    read: tuple[float, float]
    x: tuple[float, float, float, float]
    x_p: tuple[float, ...]
    stash: tuple[float, float, float, float] | None
    stash_p: tuple[float, ...]
    keep: bool

    @property
    def noisy(self) -> bool:
        return bool(self.x[3]) or bool(self.stash and self.stash[3])


def compile_calls(table: Table, prediction_type: str, hooked: bool) -> list[Call]:
    """The calls of a table for a network of the given prediction type.

    With a hook p0 is computed first and stands in the place of m, so nothing is folded into x.
    """
    calls = []
    for i, row in enumerate(table.rows):
        alpha, sigma = float(table.levels.alpha[i]), float(table.levels.sigma[i])
        read = linear_map(prediction_type, table.basis, alpha, sigma)
        cx, cm = (0.0, 1.0) if hooked else read

        def fold(weights, cx=cx, cm=cm):
            p0 = weights[P0]
            return (
                float(weights[X] + p0 * cx),
                float(weights[STASH]),
                float(p0 * cm),
                float(weights[-1]),
            ), tuple(float(w) for w in weights[P0 + 1 : -1])

        ahead = range(i + 1, min(i + table.history, table.calls))
        keep = any(table.rows[j, :, P0 + j - i].any() for j in ahead)
        x, x_p = fold(row[0])
        stash, stash_p = fold(row[1])
        untouched = row[1, STASH] == 1 and not (row[1, [X, *range(P0, row.shape[1])]]).any()
        unused = not row[1].any() or not table.rows[i + 1 :, :, STASH].any()
        calls.append(Call(alpha, sigma, read, x, x_p, None if untouched or unused else stash, stash_p, keep))
    return calls


def weighted_sum(terms: list[Term]) -> torch.Tensor:
    """sum of weight * tensor, a new tensor: one product and an in-place scaled addition per further term."""
    first, weight = terms[0]
    total = first * weight
    for tensor, weight in terms[1:]:
        total = total.add_(tensor, alpha=weight)
    return total


def apply_call(
    call: Call,
    x: torch.Tensor,
    m: torch.Tensor,
    history: tuple[Term, ...],
    stash: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(x', stash') of one call; a pure function of tensors.

    Args:
        x: the latent, any shape.
        m: the network's output, or the hooked p0.
        history: (tensor, scale) of p1, p2, ..., newest first, p = scale * tensor.
        stash: the saved latent, if one is.
        noise: N(0, I) of x's shape, if the call is noisy.
    """

    def out(weights: tuple[float, float, float, float], past: tuple[float, ...]) -> torch.Tensor:
        terms = [(t, w) for t, w in zip((x, stash, m, noise), weights, strict=True) if w and t is not None]
        terms += [(t, w * scale) for (t, scale), w in zip(history, past, strict=False) if w]
        return weighted_sum(terms or [(x, 0.0)])

    new_stash = stash if call.stash is None else out(call.stash, call.stash_p)
    return out(call.x, call.x_p), new_stash


class Run:
    """The state of one run of a table.

    Args:
        table: what to run.
        prediction_type: what the network predicts.
        hook: elementwise map of the x0 prediction, or None.
        begin: number of calls left out before the table's first one.
    """

    def __init__(self, table: Table, prediction_type: str, hook: Hook | None = None, begin: int = 0):
        self.table, self.prediction_type, self.hook, self.begin = table, prediction_type, hook, begin
        self.calls = compile_calls(table, prediction_type, hook is not None)
        self.position = 0
        self.history: deque[Term] = deque(maxlen=max(1, table.history - 1))
        self.stash: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        return self.position >= len(self.calls)

    @property
    def call(self) -> Call:
        """The call that comes next."""
        return self.calls[self.position]

    def denoised(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """The x0 prediction, the hook applied."""
        cx, cm = linear_map(self.prediction_type, "x0", call.alpha, call.sigma)
        x0 = weighted_sum([(x, cx), (m, cm)])
        return x0 if self.hook is None else self.hook(x0)

    def advance(
        self, x: torch.Tensor, m: torch.Tensor, draw: Callable[[Call], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Execute the next call.

        Args:
            x: the latent at this call's level, float32 or float64.
            m: the network's output for it, of the same dtype.
            draw: makes the noise, asked only if the call is noisy.
        """
        call = self.call
        noise = draw(call) if call.noisy and draw is not None else None
        if self.hook is not None:
            x0 = self.denoised(call, x, m)
            m = x0 if self.table.basis == "x0" else (x - call.alpha * x0) / call.sigma
        new_x, self.stash = apply_call(call, x, m, tuple(self.history), self.stash, noise)
        if self.table.history > 1:
            self.history.appendleft(self._kept(call, x, m))
        self.position += 1
        return new_x

    def _kept(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> Term:
        """p0 for later calls as (tensor, scale): the scale saves a pass over memory."""
        cx, cm = (0.0, 1.0) if self.hook is not None else call.read
        if not call.keep:
            return m, 0.0
        if cx == 0.0:
            return m, cm
        return torch.add(x, m, alpha=cm / cx), cx
