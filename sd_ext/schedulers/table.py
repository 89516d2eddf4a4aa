"""A sampler is a table: one small matrix per network call.

At call i the state is a handful of tensors, the slots

    x          the latent the pipeline holds, at level (alpha_i, sigma_i)
    stash      one saved latent: the base of a multi-stage step
    p0 p1 ...  predictions in the table's basis, x0 or eps, newest first; p0 is this call's
    noise      a fresh draw from N(0, I)

and the call is one matrix:   (x', stash') = rows[i] @ (x, stash, p0, ..., p_{k-1}, noise).

With guidance the predictions are guided ones. A table of two fields also weighs the unconditional predictions u0 u1 ...
that the network makes for guidance anyway (or the conditional ones c0 c1 ...); they stand between the p and the noise.

A method is therefore numbers (general linear methods, Butcher 2006; coefficient matrices for diffusion samplers,
arXiv 2503.08643). Numbers can be checked: whatever the method, on data that is a single point its predictions are
exact, so a table can be run symbolically, and must end every call with x' = alpha' x0 + sigma' N(0, 1).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..board import HALVES, Half
from ..declared import make
from ..errors import InputError, TableError
from ..reading import parse_json
from .prediction import Basis
from .run import P0, STASH, Rows, X
from .schedule import Array, Levels

Preserves = Literal["marginal", "mean", "nothing"]
"""What a table keeps on data that is a single point; see `Table`."""

FORMAT, FORMAT_OF_TWO = "sd_ext.table/1", "sd_ext.table/2"
"""What a table's JSON says it is: tables of one field, and of two."""


@dataclass(frozen=True, eq=False)
class Table:
    """A sampler's coefficients in float64, checked at birth.

    Args:
        levels: the level of each of the n calls, then the end: n + 1 levels.
        rows: shape `(n, 2, 3 + k)`: for x' and stash', the weights of x, stash, p0 ... p_{k-1} and noise.
        basis: what the predictions p are, "x0" or "eps".
        fields: 1; or 2, then rows have shape `(n, 2, 3 + 2 k)`, with the weights of u0 ... u_{k-1} after those of p.
        second: what the second field is, "unconditional" or "conditional".
        preserves: what holds on one-point data: "marginal", mean and variance of x' are right (any exact solver);
            "mean", only its mean (inflated variances, weak schemes); "nothing" (fitted tables).

    Raises:
        TableError: shapes that do not fit, numbers that are not finite, a slot read before it was written, or an
            invariant that does not hold; the message names the call.
    """

    levels: Levels
    rows: Array
    basis: Basis = "x0"
    preserves: Preserves = "marginal"
    fields: int = 1
    second: Half = "unconditional"

    def __post_init__(self) -> None:
        rows = np.asarray(self.rows, dtype=float)
        object.__setattr__(self, "rows", rows)
        if self.basis not in ("x0", "eps") or self.preserves not in ("marginal", "mean", "nothing"):
            raise TableError(f"unknown basis {self.basis!r} or preserves {self.preserves!r}")
        if self.fields not in (1, 2):
            raise TableError(f"a table has 1 field or 2, got {self.fields!r}")
        if self.second not in HALVES:
            raise TableError(f"the second field is {' or '.join(HALVES)}, got {self.second!r}")
        shaped = rows.ndim == 3 and rows.shape[1] == 2 and rows.shape[2] >= 3 + self.fields
        if not shaped or (rows.shape[2] - 3) % self.fields or len(rows) + 1 != len(self.levels):
            history = "history" if self.fields == 1 else "2 history"
            raise TableError(
                f"{len(self.levels)} levels need rows of shape ({len(self.levels) - 1}, 2, 3 + {history}), "
                f"got {rows.shape}"
            )
        numbers = (rows, self.levels.t, self.levels.alpha, self.levels.sigma)
        if not all(np.isfinite(n).all() for n in numbers):
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2)))
            raise TableError(f"a coefficient is not finite at call {bad.tolist()}")
        self._check_reads()
        if self.preserves != "nothing":
            self._check_one_point()

    @property
    def calls(self) -> int:
        """Network evaluations the table makes."""
        return len(self.rows)

    @property
    def history(self) -> int:
        """Predictions of each field that a row can weigh, this call's included."""
        return (self.rows.shape[2] - 3) // self.fields

    @property
    def stochastic(self) -> bool:
        """Whether any call adds noise."""
        return bool(np.any(self.rows[:, :, -1]))

    def numbers(self) -> tuple[list[float], list[float], Rows]:
        """alpha and sigma of every call, and the rows, as plain numbers; what `run.compile_calls` reads."""
        return self.levels.alpha[:-1].tolist(), self.levels.sigma[:-1].tolist(), self.rows.tolist()

    def _predictions(self, row: Array) -> Array:
        """The weights of predictions in a call's matrix, `(2, fields, history)`."""
        return row[:, P0:-1].reshape(2, self.fields, self.history)

    def _check_reads(self) -> None:
        """No call reads a prediction or stash that no earlier call made."""
        for i in range(min(self.calls, self.history - 1)):
            if np.any(self._predictions(self.rows[i])[:, :, i + 1 :]):
                raise TableError(f"call {i} reads a prediction from before the first call")
        stashed = False
        for i, row in enumerate(self.rows):
            if not stashed and np.any(row[:, STASH]):
                raise TableError(f"call {i} reads the stash before any call has filled it")
            stashed = stashed or bool(np.any(row[STASH]))

    def _check_one_point(self, tolerance: float = 2e-8) -> None:
        """Run the table on data that is the point 1, each slot a vector over (x0, first noise, later noises). There a
        prediction is right with and without a prompt, so that weights of both fields add up.

        Args:
            tolerance: large weights that nearly cancel, as of high orders on eps from near pure noise, leave rounding
                errors of up to 1e-8.
        """
        alpha, sigma = self.levels.alpha, self.levels.sigma
        slots = np.zeros((3 + self.history, 2 + self.calls))
        slots[X, :2] = alpha[0], sigma[0]
        for i, row in enumerate(self.rows):
            point = np.zeros(2 + self.calls)
            point[0] = 1.0
            slots[P0 + 1 : -1] = slots[P0:-2].copy()
            slots[P0] = point if self.basis == "x0" else (slots[X] - alpha[i] * point) / sigma[i]
            slots[-1] = 0.0
            slots[-1, 2 + i] = 1.0
            weights = np.concatenate([row[:, :P0], self._predictions(row).sum(1), row[:, -1:]], axis=1)
            slots[: STASH + 1] = weights @ slots
            mean, deviation = slots[X, 0], float(np.linalg.norm(slots[X, 1:]))
            if abs(mean - alpha[i + 1]) > tolerance:
                raise TableError(
                    f"call {i} turns a constant picture of 1 into {mean:.6g}; it must be {alpha[i + 1]:.6g}"
                )
            if self.preserves == "marginal" and abs(deviation - sigma[i + 1]) > tolerance:
                raise TableError(
                    f"call {i} leaves noise {deviation:.6g} on a known picture; it must be {sigma[i + 1]:.6g}"
                )

    def __str__(self) -> str:
        """One line per call, zero weights left blank."""
        said = (self.basis, f"{self.second[0]} {self.basis}")[: self.fields]
        names = ["x", "stash", *(f"{p}[{-j}]" if j else p for p in said for j in range(self.history)), "noise"]
        used = [j for j in range(len(names)) if np.any(self.rows[:, :, j])]
        head = f"{'call':>4} {'t':>8} {'alpha':>8} {'sigma':>8}  out   " + "".join(f"{names[j]:>11}" for j in used)
        kind = f"{self.basis} basis" + (", two fields" if self.fields == 2 else "")
        lines = [f"Table: {self.calls} calls, {kind}, history {self.history}, keeps {self.preserves}", head]
        for i, row in enumerate(self.rows):
            level = f"{i:>4} {self.levels.t[i]:>8.2f} {self.levels.alpha[i]:>8.5f} {self.levels.sigma[i]:>8.5f}"
            for out, weights in zip(("x", "stash"), row, strict=True):
                if out == "x" or np.any(weights):
                    shown = "".join(f"{weights[j]:>+11.5f}" if weights[j] else " " * 11 for j in used)
                    lines.append(f"{level if out == 'x' else ' ' * len(level)}  {out:<6}{shown}")
        lines.append(f" end {self.levels.t[-1]:>8.2f} {self.levels.alpha[-1]:>8.5f} {self.levels.sigma[-1]:>8.5f}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; floats survive JSON exactly."""
        levels = {"t": self.levels.t, "alpha": self.levels.alpha, "sigma": self.levels.sigma}
        return {
            "format": FORMAT if self.fields == 1 else FORMAT_OF_TWO,
            "basis": self.basis,
            "preserves": self.preserves,
            **({} if self.second == HALVES[0] else {"second": self.second}),
            **{name: values.tolist() for name, values in levels.items()},
            "rows": self.rows.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Table:
        """The reverse of `to_dict`; everything is validated.

        Raises:
            InputError: a key is missing or the format is another one.
            TableError: the numbers are not a table.
        """
        if not isinstance(data, Mapping) or data.get("format") not in (FORMAT, FORMAT_OF_TWO):
            raise InputError(f"not a sampler table: expected 'format': {FORMAT!r} or {FORMAT_OF_TWO!r}")
        saved = make(_Saved, data, "not a sampler table: it")
        if not len(saved.t) == len(saved.alpha) == len(saved.sigma):
            raise TableError("t, alpha and sigma must be lists of equal length")
        try:
            rows = np.asarray(saved.rows, dtype=float)
        except ValueError:
            raise TableError("the rows of a table must be lists of equal length") from None
        levels = Levels(*(np.asarray(values, dtype=float) for values in (saved.t, saved.alpha, saved.sigma)))
        fields = 1 if data["format"] == FORMAT else 2
        return cls(levels, rows, saved.basis, saved.preserves, fields, saved.second)

    def to_json(self) -> str:
        """The table as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The reverse of `to_json`.

        Raises:
            InputError: the text is not JSON, or not a table.
        """
        return cls.from_dict(parse_json(text, "not a sampler table: it"))


@dataclass(frozen=True)
class _Saved:
    """What a table is as JSON."""

    basis: Basis
    preserves: Preserves
    t: Sequence[float]
    alpha: Sequence[float]
    sigma: Sequence[float]
    rows: Sequence[Sequence[Sequence[float]]]
    second: Half = "unconditional"


@dataclass(frozen=True)
class Row:
    """One line of a call's matrix: how much of each slot is in x' (or, as the second of a pair, in stash').

    Samplers are written in these; `build` puts them into a table.

    Args:
        x: weight of the latent.
        p: weights of the predictions p0, p1, ..., newest first; those left out are 0.
        u: weights of the unconditional predictions u0, u1, ...; any makes a table of two fields.
        noise: weight of a fresh draw, that is, the standard deviation that is added.
        stash: weight of the saved latent.
    """

    x: float = 0.0
    p: tuple[float, ...] = ()
    noise: float = 0.0
    stash: float = 0.0
    u: tuple[float, ...] = ()


def build(
    levels: Levels,
    rows: Iterable[Row | tuple[Row, Row]],
    basis: Basis,
    preserves: Preserves = "marginal",
) -> Table:
    """A `Table` from rows.

    Args:
        levels: of each call, and the end.
        rows: one for each call; a lone `Row` makes x', a pair of them x' and stash'.
        basis, preserves: see `Table`.

    Raises:
        TableError: the rows are no table; see `Table`.
    """
    pairs = [row if isinstance(row, tuple) else (row, Row()) for row in rows]
    every = [row for pair in pairs for row in pair]
    history = max([1, *(len(weights) for row in every for weights in (row.p, row.u))])
    fields = 2 if any(row.u for row in every) else 1
    matrix = np.zeros((len(pairs), 2, 3 + fields * history))
    for i, pair in enumerate(pairs):
        for out, row in enumerate(pair):
            matrix[i, out, :P0] = row.x, row.stash
            matrix[i, out, P0 : P0 + len(row.p)] = row.p
            matrix[i, out, P0 + history : P0 + history + len(row.u)] = row.u or matrix[i, out, 0:0]
            matrix[i, out, -1] = row.noise
    return Table(levels, matrix, basis, preserves, fields)
