"""The sampler this package recommends: UniPC on eps, its grid and order by the number of calls."""

from __future__ import annotations

from typing import ClassVar

from .. import placement
from ..base import TableScheduler
from ..info import SamplerInfo
from ..schedule import Levels
from ..table import Table
from .unipc import unipc

FEW = 10
"""Up to so many calls a low order that ends early is best, above it a high one that ends at the least noise."""


def auto(levels: Levels, *, lower_order_final: bool = True) -> Table:
    """UniPC on eps, bh2: order 2 for up to 10 calls, order 3 above.

    Convergence is of order 4, 1 call a step. Which order and grid are best at how many calls was measured on Gaussian
    mixtures with exact scores and on the embedded model (benchmarks/error_vs_calls.py). Source: arXiv 2302.04867.
    """
    order = 2 if len(levels) - 1 <= FEW else 3
    return unipc(levels, order, basis="eps", lower_order_final=lower_order_final)


class AutoScheduler(TableScheduler):
    """The recommended sampler; see `auto`.

    Its grid is "lambda_uniform" for up to 10 calls and "karras" above, unless `grid` or one of Diffusers' flags names
    another. Flow matching keeps the grid of its `timestep_spacing`.

    Args:
        lower_order_final: lower the order towards the end, to 1 in the last step.
    """

    lower_order_final: bool = True

    _closed_grid: ClassVar[bool] = False

    def _place(self, calls: int) -> Levels:
        named = placement.grid_name(self.config) != self.config["timestep_spacing"]
        if named or self.config["grid"] is not None or self.schedule.flow:
            return self._grid_levels(calls)
        return self._grid_levels(calls, grid="lambda_uniform" if calls <= FEW else "karras")

    def _table(self, levels: Levels, eta: float) -> Table:
        return auto(levels, lower_order_final=self.config["lower_order_final"])


SAMPLERS = (
    SamplerInfo(
        "auto",
        AutoScheduler,
        4,
        "arXiv 2302.04867, alg. 1-2",
        ("default", "automatic", "recommended"),
        note="recommended: UniPC on eps, grid and order by the number of calls",
    ),
)
