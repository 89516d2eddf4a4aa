"""What was found for one number of calls at one strength of guidance, as data, plain JSON, and between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...declared import make
from ...errors import InputError
from ..table import STASH, Table
from .between import between, same_kind

MOST_CALLS = 1000
LONGEST_NAME = 100


@dataclass(frozen=True, eq=False)
class Fit:
    """What was found for one number of network calls at one strength of guidance.

    A fitted table is deterministic, has no stash, and is exact on data that is a single point, at least in the mean.

    Args:
        calls: network evaluations, 1 to 1000.
        guidance: the guidance scale; 1 is none.
        table: the fitted table, of one field or two; None where the known sampler is better.
        companion: beside a table of two fields one of one field with the very same levels, for pipelines that leave no
            unconditional predictions; or None.
        known: the best sampler that was not fitted, by a name that `make_scheduler` takes.
        errors: measured on pictures that were not fitted, by name: latent RMSE to the teacher ("fitted", "one_field",
            "known") and standard deviation beside the teacher's ("fitted_spread", "known_spread").
        starts: for runs that begin in the middle (image to image, refiners), by the call they begin with, whether the
            rest of the fitted table is better there than the known sampler. Where nothing is recorded the known sampler
            goes on from the table's level.
        grid: the kind of grid the levels were fitted from, such as "karras". Tables of one kind are interpolated.
        whole_calls: the calls, from 0, that compute the whole U-Net where it reuses features as the sampler says
            (`cache_schedule="sampler"`); None is every one.

    Raises:
        InputError: a value that cannot be, or a table that is none of a fit.
    """

    calls: int
    guidance: float
    table: Table | None
    companion: Table | None
    known: str
    errors: Mapping[str, float] = field(default_factory=dict)
    starts: Mapping[int, bool] = field(default_factory=dict)
    grid: str = ""
    whole_calls: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        where = f"the fit for {self.calls} calls at guidance {self.guidance:g}"
        if not 1 <= self.calls <= MOST_CALLS or not self.guidance >= 1:
            raise InputError(f"{where} must be for 1 to {MOST_CALLS} calls and a guidance of at least 1")
        if not self.known.strip():
            raise InputError(f"{where} names no known sampler")
        if len(self.known) > LONGEST_NAME:
            raise InputError(f"{where} names a known sampler in {len(self.known)} letters; at most {LONGEST_NAME}")
        if bad := [call for call in self.starts if not 0 < call < self.calls]:
            raise InputError(f"{where} speaks of a start at call {bad[0]}; it has calls 1 to {self.calls - 1}")
        if (whole := self.whole_calls) is not None and (
            list(whole) != sorted(set(whole)) or whole[:1] != (0,) or whole[-1] >= self.calls
        ):
            raise InputError(f"{where} has the whole calls {list(whole)}; they must rise from 0 to {self.calls - 1}")
        if self.table is not None:
            check_fitted(self.table, self.calls, where)
        if self.companion is not None:
            self._check_companion(self.companion, where)

    def _check_companion(self, companion: Table, where: str) -> None:
        check_fitted(companion, self.calls, f"{where}, companion,")
        if self.table is None or self.table.fields != 2 or companion.fields != 1:
            raise InputError(f"{where} has a companion; only a table of two fields has one, of one field")
        names = ("t", "alpha", "sigma")
        if not all(np.array_equal(getattr(companion.levels, n), getattr(self.table.levels, n)) for n in names):
            raise InputError(f"{where} has a companion on other levels; timesteps are told before the first call")

    def to_config(self) -> dict[str, Any]:
        """Plain JSON; numbers survive exactly."""
        return {
            "calls": self.calls,
            "guidance": self.guidance,
            "known": self.known,
            "grid": self.grid,
            "errors": dict(self.errors),
            "starts": {str(call): bool(wins) for call, wins in sorted(self.starts.items())},
            "table": self.table and self.table.to_dict(),
            "companion": self.companion and self.companion.to_dict(),
            **({} if self.whole_calls is None else {"whole_calls": list(self.whole_calls)}),
        }

    @classmethod
    def from_config(cls, data: Any, where: str = "the fit") -> Fit:
        """The reverse of `to_config`; everything is validated.

        Args:
            data: the object.
            where: what it is called in messages.

        Raises:
            InputError: with the place that is wrong.
        """
        saved = make(_SavedFit, data, where)
        starts = {str(call): wins for call, wins in saved.starts.items()}
        if bad := [call for call in starts if not (call.isdecimal() and len(call) < 5)]:
            raise InputError(f"{where}: starts has the key {bad[0]!r}; it must be the number of a call")
        tables = {}
        for name in ("table", "companion"):
            given = getattr(saved, name)
            try:
                tables[name] = None if given is None else Table.from_dict(given)
            except InputError as problem:
                raise InputError(f"{where}: {name}: {problem}") from None
        rest = {"errors": dict(saved.errors), "starts": {int(call): wins for call, wins in starts.items()}}
        try:
            whole = None if saved.whole_calls is None else tuple(saved.whole_calls)
            return cls(
                saved.calls, float(saved.guidance), **tables, known=saved.known, **rest, grid=saved.grid,
                whole_calls=whole,
            )  # fmt: skip
        except InputError as problem:
            raise InputError(f"{where}: {problem}") from None


def from_call(whole_calls: Sequence[int], begin: int) -> tuple[int, ...]:
    """The whole calls of a run that begins at a call, counted from there."""
    return tuple(call - begin for call in whole_calls if call >= begin)


def check_fitted(table: Table, calls: int, where: str) -> None:
    """That a table can be one of a fit.

    Raises:
        InputError: why not, in a sentence that begins with `where`.
    """
    if table.calls != calls:
        raise InputError(f"{where} has a table of {table.calls} calls")
    if table.stochastic or np.any(table.rows[:, 1]) or np.any(table.rows[:, :, STASH]):
        raise InputError(f"{where} has a table with noise or a stash; a fitted table has neither")
    if table.preserves == "nothing":
        raise InputError(f"{where} has a table that preserves nothing; a fitted table keeps at least the mean")
    told = table.levels.t[:-1]
    if np.any(table.levels.alpha < 0) or np.any(table.levels.sigma[:-1] <= 0) or np.any(np.diff(table.levels.lam) <= 0):
        raise InputError(f"{where} has levels whose noise does not fall from call to call")
    if np.any(np.diff(told) >= 0):
        raise InputError(f"{where} has told timesteps that do not fall from call to call")


@dataclass(frozen=True)
class _SavedFit:
    """What a fit is as JSON."""

    calls: int
    guidance: float
    known: str
    table: Mapping[str, Any] | None = None
    companion: Mapping[str, Any] | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    starts: Mapping[str, bool] = field(default_factory=dict)
    grid: str = ""
    whole_calls: Sequence[int] | None = None


def interpolated(low: Fit, high: Fit, guidance: float) -> Fit | None:
    """The fit at a strength of guidance between those of two fits for the same calls.

    Returns:
        Without measured errors, and with those starts that win in both. None where one of the two has no table, or
        they differ in grid, basis, fields or whole calls.
    """
    if low.whole_calls != high.whole_calls:
        return None
    if low.table is None or high.table is None or not same_kind(low.table, high.table) or low.grid != high.grid:
        return None
    part = (guidance - low.guidance) / (high.guidance - low.guidance)
    companion = None
    if low.companion is not None and high.companion is not None and same_kind(low.companion, high.companion):
        companion = between(low.companion, high.companion, part)
    return Fit(
        low.calls,
        guidance,
        between(low.table, high.table, part),
        companion,
        low.known,
        starts={call: wins and high.starts.get(call, False) for call, wins in low.starts.items()},
        grid=low.grid,
        whole_calls=low.whole_calls,
    )
