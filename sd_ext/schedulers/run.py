"""One sampling run: a table being executed. The only place where tensors are combined.

Before the first call a table's rows are compiled to plain numbers: what the network predicts is worked into the
weights, and weights of zero are dropped. A call is then a few scaled additions, which wait for no device.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from ..board import Half
from .prediction import Basis, Hook, Prediction, linear_map

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

Tensors = tuple[torch.Tensor, ...]

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


def compile_calls(table: Coefficients, prediction: Prediction | str, hooked: bool) -> list[Call]:
    """The calls of a table for a network.

    Args:
        table: the coefficients.
        prediction: what the network predicts, see `linear_map`.
        hooked: whether a hook changes x0. Then the prediction is computed before the row and stands in the place of m,
            so that no part of it is in the weight of x.

    Returns:
        One `Call` for each row.
    """
    alpha, sigma, rows = table.numbers()
    n, history = len(rows), table.history
    reads = [(0.0, 1.0) if hooked else linear_map(prediction, table.basis, alpha[i], sigma[i]) for i in range(n)]
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


def weighted_sum(weights: Weights, tensors: Tensors) -> torch.Tensor:
    """sum of weight * tensor: one product and an in-place scaled addition per further term; a new tensor, save where
    the sum is one tensor as it is.
    """
    terms = iter(weights)
    place, weight = next(terms)
    if weight == 1.0 and len(weights) == 1:
        return tensors[place]
    total = tensors[place] * weight
    for place, weight in terms:
        total.add_(tensors[place], alpha=weight)
    return total


class Run:
    """A table on its way: how far it is, and what it remembers of earlier calls.

    Args:
        table: what to run.
        prediction: what the network predicts.
        hook: elementwise map of the x0 prediction, or None.
        begin: which of the announced calls the table's first one is.
    """

    def __init__(self, table: Coefficients, prediction: Prediction | str, hook: Hook | None = None, begin: int = 0):
        self.table: Any = table
        self.prediction, self.hook, self.begin = prediction, hook, begin
        self.calls = compile_calls(table, prediction, hook is not None)
        self.position = 0
        """Calls made."""
        self.depth = table.history - 1
        """Predictions of earlier calls to remember."""
        self.stash: torch.Tensor | None = None
        self.past: Tensors = ()
        """What is kept of earlier calls' predictions, newest first; see `Call.keep`."""
        self.second: Tensors = ()
        """The same of the second field, in a table of two."""
        self.path: Any = None
        """Where the noise comes from, if not from fresh draws."""
        self.companion: Run | None = None
        """The run of one field that stands in for one of two where no network leaves its unconditional predictions."""
        self.between = False
        """Whether it began at a timestep that is none of the announced calls'; `begin` is then the call before the next
        one, from -1 on.
        """
        self.eta = 0.0
        """What `step` was given as `eta`, for samplers that take it there."""
        self.before: tuple[torch.Tensor | None, Tensors, Tensors] | None = None
        """Stash and predictions as they were before the last call."""
        self.given: tuple[Any, torch.Tensor] | None = None
        """The network's output as `step` last got it and the second field's beside it, in a table of two."""

    def denoised(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """The x0 prediction, the hook applied, of the shape of x."""
        cx, cm = linear_map(self.prediction, "x0", call.alpha, call.sigma)
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
        before, self.before = self.before, (self.stash, self.past, self.second)
        if call.stash is not None:
            self.stash = weighted_sum(call.stash, tensors)  # type: ignore[arg-type]
        if self.depth:
            last = self.position - self.depth - 1  # the call whose predictions nothing needs any more
            spare = (self.calls[last], before) if before and last >= 0 else None
            self.past = self._kept(self.past, call.keep, spare and (spare[0].keep, spare[1][1][-1]), x, m)
            if self.table.fields > 1:
                u = m if second is None else second  # one that no call reads
                unused = spare and (spare[0].keep_second, spare[1][2][-1])
                self.second = self._kept(self.second, call.keep_second, unused, x, u)
        self.position += 1
        return previous

    def back(self) -> None:
        """Take the last call back, so that it can be made again; noise that was drawn for it is drawn anew."""
        assert self.before is not None, "only the last call can be taken back"
        (self.stash, self.past, self.second), self.before = self.before, None
        self.position -= 1

    def _hooked(self, call: Call, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """What stands in the place of the network's output m where a hook has changed its x0."""
        x0 = self.denoised(call, x, m)
        if self.table.basis == "x0":
            return x0
        if call.sigma == 0:  # a clean picture is its own x0, and says nothing of eps
            cx, cm = linear_map(self.prediction, "eps", call.alpha, call.sigma)
            return weighted_sum(((0, cx), (1, cm)), (x, m))
        return (x - call.alpha * x0) / call.sigma

    def _kept(
        self,
        past: Tensors,
        keep: float | str | None,
        spare: tuple[float | str | None, torch.Tensor] | None,
        x: torch.Tensor,
        m: torch.Tensor,
    ) -> Tensors:
        """What later calls need of the predictions up to this one.

        Args:
            past: what was kept so far, newest first.
            keep: how this call's prediction is kept, see `Call.keep`.
            spare: what was kept of a prediction that nothing needs any more, and how, if there is one: it is written
                over where it is ours to change.
            x, m: this call's.
        """
        if not isinstance(keep, float):
            new = m
        elif spare and isinstance(spare[0], float) and spare[1].shape == x.shape and not _tracked(x, m):
            new = torch.add(x, m, alpha=keep, out=spare[1])
        else:
            new = torch.add(x, m, alpha=keep)
        return (new, *past[: self.depth - 1])


def _tracked(x: torch.Tensor, m: torch.Tensor) -> bool:
    """Whether gradients are wanted, so that nothing may be written over."""
    return x.requires_grad or m.requires_grad
