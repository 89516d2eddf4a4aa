"""One sampling run: a table being executed. The only place where tensors are combined.

Before the first call a table's rows are compiled to plain numbers: what the network predicts is worked into the
weights, and weights of zero are dropped. A call is then a few scaled additions, which wait for no device.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from ..board import Half
from .prediction import Basis, Hook, linear_map

X, STASH, P0 = 0, 1, 2
"""Where a table's row has the weights of x, of the stash and of this call's prediction. Those of earlier predictions
follow, newest first, and the noise's is last.
"""

AT_X, AT_M, AT_STASH, AT_NOISE, AT_PAST = range(5)
"""Which tensor a compiled weight is for: x, the network's output, the stash, the noise, or (from `AT_PAST` on) what was
kept of the call before, of the one before that, and so on. In a table of two fields the second of the network's outputs
follows (`Coefficients.second`), and what was kept of those before.
"""

Weights = tuple[tuple[int, float], ...]
"""(which tensor, weight) pairs, weights of zero left out."""

Rows = list[list[list[float]]]
"""For each call, the weights of x' and those of stash', in the order of `X`, `STASH`, `P0` ... and the noise; with two
fields the unconditional predictions stand between the predictions and the noise.
"""


class Coefficients(Protocol):
    """What a run needs of a table."""

    @property
    def basis(self) -> Basis: ...

    @property
    def history(self) -> int:
        """Predictions of each field that a row can weigh, this call's included."""
        ...

    @property
    def fields(self) -> int:
        """1, or 2 where rows weigh one half of the guided predictions as well."""
        ...

    @property
    def second(self) -> Half:
        """Which half that is."""
        ...

    def numbers(self) -> tuple[list[float], list[float], Rows]:
        """alpha and sigma of every call, and the rows."""
        ...


class Call(NamedTuple):
    """One network call of a table, compiled for what the network predicts.

    Args:
        alpha, sigma: the level of x.
        x: weights of x'.
        stash: weights of stash'; None leaves the stash as it is.
        keep: how this call's prediction p0 = cx x + cm m is stored for later calls: not at all (None), as the network's
            output m alone ("m"), or as x + keep m with keep = cm / cx. The factor that is missing to p0 is multiplied
            into the weights of the later calls, so p0 itself is never formed.
        noisy: whether the call needs a draw of noise.
        second: whether the call needs the second of the network's outputs, where the table has two fields.
        keep_second: how that is stored for later calls, as `keep`.
    """

    alpha: float
    sigma: float
    x: Weights
    stash: Weights | None
    keep: float | str | None
    noisy: bool
    second: bool = False
    keep_second: float | str | None = None


def compile_calls(table: Coefficients, prediction_type: str, hooked: bool) -> list[Call]:
    """The calls of a table for a network of the given prediction type.

    Args:
        table: the coefficients.
        prediction_type: what the network predicts, see `linear_map`.
        hooked: whether a hook changes x0. Then the prediction is computed before the row and stands in the place of m,
            so that no part of it is in the weight of x.

    Returns:
        One `Call` for each row.
    """
    alpha, sigma, rows = table.numbers()
    n, history = len(rows), table.history
    if hooked:
        reads = [(0.0, 1.0)] * n
    else:
        reads = [linear_map(prediction_type, table.basis, alpha[i], sigma[i]) for i in range(n)]
    scales = [cx if cx else cm for cx, cm in reads]
    firsts = [P0 + field * history for field in range(table.fields)]  # where the weights of each field begin

    def fold(i: int, row: list[float]) -> Weights:
        cx, cm = reads[i]

        def past(first: int) -> list[float]:
            return [row[first + j] * scales[i - j] for j in range(1, history) if i - j >= 0]

        of_x = row[X] + sum(row[first] for first in firsts) * cx
        second = [weight for first in firsts[1:] for weight in (row[first] * cm, *past(first))]
        weights = enumerate([of_x, row[P0] * cm, row[STASH], row[-1], *past(P0), *second])
        return tuple((place, weight) for place, weight in weights if weight) or ((AT_X, 0.0),)

    def keep(i: int, first: int) -> float | str | None:
        later = range(i + 1, min(i + history, n))
        cx, cm = reads[i]
        read = any(row[first + j - i] for j in later for row in rows[j])
        return None if not read else cm / cx if cx else "m"

    unchanged = [0.0, 1.0, *[0.0] * (len(rows[0][0]) - 2)] if n else []
    last_read = max((i for i in range(n) if any(row[STASH] for row in rows[i])), default=-1)
    calls = []
    for i, (x_row, stash_row) in enumerate(rows):
        kept = [keep(i, first) for first in firsts]
        calls.append(
            Call(
                alpha=alpha[i],
                sigma=sigma[i],
                x=fold(i, x_row),
                stash=None if last_read <= i or stash_row == unchanged else fold(i, stash_row),
                keep=kept[0],
                noisy=bool(x_row[-1] or stash_row[-1]),
                second=any(row[first] for first in firsts[1:] for row in rows[i]) or any(kept[1:]),
                keep_second=kept[-1] if len(kept) > 1 else None,
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
    """A table on its way: how far it is, and what it remembers of earlier calls.

    Args:
        table: what to run.
        prediction_type: what the network predicts.
        hook: elementwise map of the x0 prediction, or None.
        begin: which of the announced calls the table's first one is.
    """

    def __init__(self, table: Coefficients, prediction_type: str, hook: Hook | None = None, begin: int = 0):
        self.table: Any = table
        self.prediction_type, self.hook, self.begin = prediction_type, hook, begin
        self.calls = compile_calls(table, prediction_type, hook is not None)
        self.position = 0
        """Calls made."""
        self.depth = table.history - 1
        """Predictions of earlier calls to remember."""
        self.stash: torch.Tensor | None = None
        self.past: tuple[torch.Tensor, ...] = ()
        """What is kept of earlier calls' predictions, newest first; see `Call.keep`."""
        self.second: tuple[torch.Tensor, ...] = ()
        """The same of the second field, in a table of two."""
        self.path: Any = None
        """Where the noise comes from, if not from fresh draws."""
        self.companion: Run | None = None
        """The run of one field that stands in for one of two where no network leaves its unconditional predictions."""

    def denoised(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """The x0 prediction, the hook applied, of the shape of x."""
        cx, cm = linear_map(self.prediction_type, "x0", call.alpha, call.sigma)
        x0 = weighted_sum(((0, cx), (1, cm)), (x, m))
        return x0 if self.hook is None else self.hook(x0)

    def advance(
        self,
        x: torch.Tensor,
        m: torch.Tensor,
        noise: torch.Tensor | None = None,
        second: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Execute the next call and return x'.

        Args:
            x: the latent at this call's level, float32 or float64.
            m: the network's output for it, of the same shape and dtype.
            noise: N(0, I) of that shape, for a noisy call.
            second: the second field's output, for a call that needs it.
        """
        call = self.calls[self.position]
        if self.hook is not None:
            m = self._hooked(call, x, m)
            second = second if second is None else self._hooked(call, x, second)
        tensors = (x, m, self.stash, noise, *self.past)
        if self.table.fields > 1:
            tensors = (*tensors, second, *self.second)
        previous = weighted_sum(call.x, tensors)  # type: ignore[arg-type]
        if call.stash is not None:
            self.stash = weighted_sum(call.stash, tensors)  # type: ignore[arg-type]
        if self.depth:
            oldest = self.calls[self.position - self.depth] if self.position >= self.depth else None
            self.past = self._kept(self.past, call.keep, oldest and oldest.keep, x, m)
            if self.table.fields > 1:
                u = m if second is None else second  # one that no call reads
                self.second = self._kept(self.second, call.keep_second, oldest and oldest.keep_second, x, u)
        self.position += 1
        return previous

    def _hooked(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """What stands in the place of the network's output m where a hook has changed its x0."""
        x0 = self.denoised(call, x, m)
        return x0 if self.table.basis == "x0" else (x - call.alpha * x0) / call.sigma

    def _kept(
        self,
        past: tuple[torch.Tensor, ...],
        keep: float | str | None,
        keep_of_oldest: float | str | None,
        x: torch.Tensor,
        m: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """What later calls need of the predictions up to this one. This call's is written over the oldest one kept
        where that is ours to change, since this call was the last to read it.

        Args:
            past: what was kept so far, newest first.
            keep, keep_of_oldest: how this call's prediction and the oldest one are kept, see `Call.keep`.
            x, m: this call's.
        """
        if not isinstance(keep, float):
            new = m
        elif not isinstance(keep_of_oldest, float) or x.requires_grad or m.requires_grad or past[-1].shape != x.shape:
            new = torch.add(x, m, alpha=keep)
        else:
            new = torch.add(x, m, alpha=keep, out=past[-1])
        return (new, *past[: self.depth - 1])
