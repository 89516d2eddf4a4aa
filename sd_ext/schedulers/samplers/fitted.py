"""Tables that were fitted to many problems at once: what `auto` is with few calls.

Each is for a number of calls at a strength of guidance, on the levels of lambda from Stable Diffusion's full noise
(`scaled_linear`, 0.00085 to 0.012) down. A call is a first-order step and weighted differences of the predictions of x0
so far, newest first:

    x' = a x + b d0 + sum_j w_j (d_j - d0)

so that it is exact where data are a single point, whatever the weights. How they are found: `benchmarks/fit_auto.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any, ClassVar

import numpy as np

from ...declared import make
from ...reading import read_json
from ..schedule import ZERO, Array, Levels, NoiseSchedule
from ..table import Row, Table, build
from ..transfer import transfer

FILE = "fitted.json"
NEAR = 0.05
"""How far in lambda another schedule's full noise may be from that of the fits."""
REACH = 1.42
"""The most that a strength of guidance may be away from that of a fit, as a factor."""


class ToldApart(Levels):
    """Levels of which the network is told other timesteps; see `Announced.add_noise`."""

    apart: ClassVar[bool] = True


@dataclass(frozen=True)
class Fitted:
    """The numbers of a table.

    Args:
        guidance: the guidance scale it was fitted at.
        calls: network calls.
        lam: lambda of each call's level, rising.
        told: by how much the lambda that the network is told differs from it.
        weights: of each call, those of d1 - d0, d2 - d0, ...
    """

    guidance: float
    calls: int
    lam: tuple[float, ...]
    told: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    def levels(self, schedule: NoiseSchedule) -> Levels:
        """Its levels on a schedule, whose own full noise is the first, and the end."""
        lam = np.array(self.lam)
        alpha, sigma = schedule.from_lambda(lam)
        top = schedule.at([schedule.t_max])
        alpha[0], sigma[0] = top.alpha[0], top.sigma[0]
        whole = Levels(schedule.at_lambda(lam + self.told).t, alpha, sigma).then(ZERO)
        return ToldApart(whole.t, whole.alpha, whole.sigma)

    def table(self, levels: Levels) -> Table:
        """The table on these levels, which `levels` made."""
        rows = []
        for i, weights in enumerate(self.weights):
            a, b = transfer(levels, i, "x0")
            rows.append(Row(a, (b - sum(weights), *weights)))
        return build(levels, rows, "x0", "marginal")


@cache
def _read() -> tuple[tuple[float, ...], Mapping[tuple[float, int], Fitted]]:
    """The strengths of guidance that were fitted at, and the tables that were kept, by guidance and calls."""
    with as_file(files("sd_ext.schedulers.samplers").joinpath(FILE)) as path:
        data = read_json(path, dict[str, list[Any]])
    tables = [make(Fitted, each, FILE) for each in data["tables"]]
    return tuple(map(float, data["guidance"])), {(each.guidance, each.calls): each for each in tables}


def every() -> Mapping[tuple[float, int], Fitted]:
    """All of them by guidance and calls."""
    return _read()[1]


def find(schedule: NoiseSchedule, guidance: float, calls: int) -> Fitted | None:
    """The table for so many calls at the fitted strength of guidance that is nearest; None where none is near, where a
    known sampler was better there, or where the schedule is another than that of the fits.
    """
    if schedule.flow or schedule.sigma_data != 1 or schedule.told_at_training is not None:
        return None
    wanted = max(1.0, guidance)
    near = min(_read()[0], key=lambda each: abs(math.log(each / wanted)))
    found = every().get((near, calls))
    if found is None or max(near / wanted, wanted / near) > REACH:
        return None
    lam: Array = schedule.lam
    alike = abs(float(lam[schedule.t_max]) - found.lam[0]) < NEAR and float(lam.max()) >= found.lam[-1]
    return found if alike else None
