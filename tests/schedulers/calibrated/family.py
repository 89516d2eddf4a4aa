"""Synthetic fits: random tables that keep data of a single point exact, in a family over guidance that is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from sd_ext.schedulers import Calibration, Fit, Levels, NoiseSchedule
from sd_ext.schedulers.calibrated.between import on_first_order
from sd_ext.schedulers.run import P0
from sd_ext.schedulers.schedule import ZERO
from sd_ext.schedulers.table import Table

from ..conftest import SD

SCHEDULE = NoiseSchedule.from_config(SD)
FLOW = NoiseSchedule.from_config({"prediction_type": "flow_prediction"})


def moved(schedule: NoiseSchedule, lam: np.ndarray, by: float, end: Levels = ZERO) -> Levels:
    """Levels at lambda whose told timesteps are those of lambda + by, but for the first, and an end."""
    levels, told = schedule.at_lambda(lam), schedule.at_lambda(lam[1:] + by).t
    return Levels(np.concatenate([levels.t[:1], told]), levels.alpha, levels.sigma).then(end)


def distances(rng: np.random.Generator, calls: int, fields: int, history: int, size: float = 0.3) -> np.ndarray:
    """Random weights of predictions that have been made, `(calls, 3 + fields history)`, none of x or noise."""
    weights = np.zeros((calls, 3 + fields * history))
    for i in range(calls):
        for first in range(P0, P0 + fields * history, history):
            made = min(history, i + 1)
            weights[i, first : first + made] = size * rng.normal(size=made)
    return weights


def table_at(
    guidance: float,
    calls: int = 5,
    fields: int = 2,
    basis: str = "x0",
    history: int = 3,
    seed: int = 0,
    preserves: str = "marginal",
    schedule: NoiseSchedule = SCHEDULE,
) -> Table:
    """A table whose levels in lambda and whose weights are straight lines over guidance."""
    rng = np.random.default_rng(seed)
    top = -np.log(schedule.ratio_range[1]) if not schedule.flow else -3.0
    lam = np.linspace(top, 2.0, calls)
    lam[1:] += rng.uniform(-0.1, 0.1, calls - 1) * guidance / 7.5
    one, other = (distances(rng, calls, fields, history) for _ in range(2))
    added = one + guidance / 7.5 * other
    if preserves == "mean":
        added[:, 0] = rng.uniform(-0.1, 0.1, calls)
    like = SimpleNamespace(basis=basis, preserves=preserves, fields=fields, second="unconditional")
    return on_first_order(moved(schedule, lam, 0.05), added, like)  # type: ignore[arg-type]


def companion_of(table: Table, seed: int = 1) -> Table:
    """A table of one field on the same levels."""
    added = distances(np.random.default_rng(seed), table.calls, 1, 2)
    like = SimpleNamespace(basis="x0", preserves="marginal", fields=1, second="unconditional")
    return on_first_order(table.levels, added, like)  # type: ignore[arg-type]


def fit(guidance: float, calls: int = 5, **how) -> Fit:
    """A fit with a companion, which is recorded to win from call 2 on and to lose from call 3 on."""
    table = table_at(guidance, calls, **how)
    starts = {call: wins for call, wins in {2: True, 3: False}.items() if call < calls}
    return Fit(
        calls, guidance, table, companion_of(table), "dpm++ 2m karras", {"fitted": 0.05, "known": 1.0}, starts, "lambda"
    )


PROVENANCE = {
    "model": "tiny", "model_digest": "0" * 64, "dtype": "float32", "size": [64, 64], "guidance": [1.5, 4, 7.5],
    "calls": [4, 5], "prompts": 16, "prompts_digest": "1" * 64, "pairs": 16, "seed": 0,
    "teacher": {"sampler": "dpm++ 2m", "calls": 72}, "method": "1", "sd_ext": "0.1.0", "torch": "2", "diffusers": "0",
    "lora": None, "seconds": 1.5,
}  # fmt: skip


def calibration(*fits: Fit, **provenance) -> Calibration:
    """By default for 4 and 5 calls at 1.5, 4 and 7.5."""
    fits = fits or tuple(fit(guidance, calls) for calls in (4, 5) for guidance in (1.5, 4.0, 7.5))
    return Calibration(fits, {**PROVENANCE, **provenance})
