"""The sampler this package recommends, by the guidance and the number of calls."""

from __future__ import annotations

from typing import ClassVar

from .. import placement
from ..base import TableScheduler
from ..info import SamplerInfo
from ..schedule import Levels
from ..table import Table
from .dpm_solver import multistep
from .unipc import unipc

WEAK = 2.0
"""Up to this guidance scale polynomials through eps are best; guided more strongly, eps is too steep for them."""
FEW = 10
"""Up to so many calls a low order that ends early is best, above it a high one that ends at the least noise."""


def auto(levels: Levels, guidance_scale: float = 7.5, *, lower_order_final: bool = True) -> Table:
    """DPM++ 2M; with weak guidance UniPC on eps, of order 2 for up to 10 calls and 3 above.

    Order 2, with weak guidance 4; 1 call a step. What is best at which guidance and how many calls was measured on
    Gaussian mixtures with exact scores and on the embedded model (benchmarks/error_vs_calls.py). Sources: arXiv
    2211.01095, algorithm 2; arXiv 2302.04867.
    """
    if guidance_scale > WEAK:
        return multistep(levels, 2, lower_order_final=lower_order_final)
    order = 2 if len(levels) - 1 <= FEW else 3
    return unipc(levels, order, basis="eps", lower_order_final=lower_order_final)


class AutoScheduler(TableScheduler):
    """The recommended sampler; see `auto`.

    Its grid is "lambda_uniform", with weak guidance and more than 10 calls "karras", unless `grid` or one of Diffusers'
    flags names another. Flow matching keeps the grid of its `timestep_spacing`.

    Args:
        guidance_scale: what the pipeline will be told; 2 or less is weak.
        lower_order_final: lower the order towards the end, to 1 in the last step.
    """

    guidance_scale: float = 7.5
    lower_order_final: bool = True

    _closed_grid: ClassVar[bool] = False

    def _place(self, calls: int) -> Levels:
        named = placement.grid_name(self.config) != self.config["timestep_spacing"]
        if named or self.config["grid"] is not None or self.schedule.flow:
            return self._grid_levels(calls)
        early = calls <= FEW or self.config["guidance_scale"] > WEAK
        return self._grid_levels(calls, grid="lambda_uniform" if early else "karras")

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return auto(levels, config["guidance_scale"], lower_order_final=config["lower_order_final"])


SAMPLERS = (
    SamplerInfo(
        "auto",
        AutoScheduler,
        2,
        "arXiv 2211.01095, alg. 2",
        ("default", "automatic", "recommended"),
        note="recommended: DPM++ 2M on lambda_uniform",
    ),
    SamplerInfo(
        "auto low guidance",
        AutoScheduler,
        4,
        "arXiv 2302.04867, alg. 1-2",
        ("auto weak guidance",),
        options={"guidance_scale": 1.0},
        note="recommended for guidance up to 2: UniPC on eps, grid and order by the calls",
    ),
)
