"""The sampler this package recommends, by the guidance and the number of calls."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import ClassVar, NamedTuple

import numpy as np

from .. import placement
from ..base import TableScheduler
from ..info import SamplerInfo
from ..rest import from_call
from ..schedule import Levels
from ..table import Table
from . import fitted
from .adams import plms
from .deis import exponential_adams
from .dpm_solver import multistep
from .unipc import unipc

__all__ = ["AutoScheduler"]


class Choice(NamedTuple):
    """What is best up to so many calls: a solver, by its name among `SOLVERS`, and a grid."""

    calls: float
    solver: str
    grid: str


SOLVERS: dict[str, Callable[[Levels], Table]] = {
    "dpm++ 2m": multistep,
    "dpm++ 3m exact": lambda levels: multistep(levels, 3, exact=True),
    "unipc": unipc,
    "unipc 3 eps": lambda levels: unipc(levels, 3, basis="eps"),
    "deis": lambda levels: exponential_adams(levels, 3, "log_rho", lower_order_final=True),
    "ipndm": plms,
}

CHOICES: dict[float, tuple[Choice, ...]] = {
    2.0: (Choice(5, "ipndm", "lambda_uniform"), Choice(20, "unipc 3 eps", "karras"), Choice(inf, "ipndm", "karras")),
    4.0: (
        Choice(6, "dpm++ 2m", "trailing"),
        Choice(15, "unipc", "ays_sdxl"),
        Choice(25, "deis", "karras"),
        Choice(inf, "ipndm", "karras"),
    ),
    inf: (
        Choice(7, "dpm++ 2m", "trailing"),
        Choice(15, "dpm++ 2m", "ays_sdxl"),
        Choice(25, "dpm++ 2m", "karras"),
        Choice(inf, "dpm++ 3m exact", "karras"),
    ),
}
"""By guidance scale, each up to its key; within, by calls."""


def choose(guidance_scale: float, calls: int) -> Choice:
    """What `auto` is for a guidance scale and a number of calls."""
    choices = next(choices for most, choices in CHOICES.items() if guidance_scale <= most)
    return next(choice for choice in choices if calls <= choice.calls)


class AutoScheduler(TableScheduler):
    """The recommended sampler, by the guidance and the number of calls: with few calls on Stable Diffusion's noise
    schedule a table that was fitted to many problems at once (`fitted`), else the solver and the grid that `CHOICES`
    names. A run that begins in the middle goes the rest of the way by the same table.

    Order 2 to 4, 1 call a step. Sources: arXiv 2211.01095, alg. 2 (DPM++ multistep); arXiv 2302.04867, alg. 1-2
    (UniPC); arXiv 2204.13902, prop. 3 and eq. 4 (DEIS, iPNDM). Which is best where was measured on Gaussian mixtures,
    on data near a sheet and with heavy tails, whose scores are exact, and on trained networks (`benchmarks/auto.py`,
    half "choose"); it is judged on others.

    A grid named by `grid` or by one of Diffusers' flags goes before its own. Flow matching keeps the grid of its
    `timestep_spacing`.

    Args:
        guidance_scale: what the pipeline will be told; classifier-free guidance as in Diffusers, 1 for none.
    """

    guidance_scale: float = 7.5

    _closed_grid: ClassVar[bool] = False

    def _fitted(self, calls: int) -> fitted.Fitted | None:
        """The fitted table for so many calls, if there is one and no grid is named."""
        own = placement.chosen_grid(self.config) is None and self.config["final_sigmas_type"] == "zero"
        return fitted.find(self.schedule, self.config["guidance_scale"], calls) if own else None

    def _place(self, calls: int) -> Levels:
        if placement.chosen_grid(self.config) is not None or self.schedule.flow:
            return self._grid_levels(calls)
        if (known := self._fitted(calls)) is not None:
            return known.levels(self.schedule)
        return self._grid_levels(calls, grid=choose(self.config["guidance_scale"], calls).grid)

    def _table_from(self, levels: Levels, begin: int, eta: float) -> Table:
        known = self._fitted(len(levels) - 1)
        if known is not None and np.array_equal(levels.alpha, known.levels(self.schedule).alpha):
            return from_call(known.table(levels), begin)
        return super()._table_from(levels, begin, eta)

    def _table(self, levels: Levels, eta: float) -> Table:
        return SOLVERS[choose(self.config["guidance_scale"], len(levels) - 1).solver](levels)


SAMPLERS = (
    SamplerInfo(
        "auto",
        AutoScheduler,
        3,
        "arXiv 2302.04867, 2211.01095, 2204.13902",
        ("default", "automatic", "recommended"),
        note="recommended: solver and grid by guidance and calls",
    ),
    SamplerInfo(
        "auto low guidance",
        AutoScheduler,
        2,
        "arXiv 2204.13902, 2302.04867",
        ("auto weak guidance",),
        options={"guidance_scale": 1.0},
        note="recommended for guidance up to 2",
    ),
)
