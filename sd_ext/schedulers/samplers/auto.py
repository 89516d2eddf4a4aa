"""The sampler this package recommends, by the guidance and the number of calls."""

from __future__ import annotations

from typing import ClassVar

from .. import placement
from ..base import TableScheduler
from ..info import SamplerInfo
from ..schedule import Levels
from ..table import Table
from .singlestep import in_steps, singlestep
from .unipc import unipc

__all__ = ["AutoScheduler"]

WEAK = 2.0
"""Up to this guidance scale polynomials through eps are best; guided more strongly, eps is too steep for them."""
FEW = 10
"""Up to so many calls a low order that ends early is best, above it a high one that ends at the least noise."""


def auto(levels: Levels, guidance_scale: float = 7.5, *, lower_order_final: bool = True) -> Table:
    """DPM++ 2S; with weak guidance UniPC on eps, of order 2 for up to 10 calls and 3 above.

    Order 2 with 2 calls a step, with weak guidance 4 with 1. What is best at which guidance and how many calls was
    measured on Gaussian mixtures with exact scores and on the embedded model (benchmarks/error_vs_calls.py). Sources:
    arXiv 2211.01095, algorithm 1; arXiv 2302.04867.
    """
    if guidance_scale > WEAK:
        return singlestep(levels)
    order = 2 if len(levels) - 1 <= FEW else 3
    return unipc(levels, order, basis="eps", lower_order_final=lower_order_final)


class AutoScheduler(TableScheduler):
    """The recommended sampler; see `auto`.

    Order 2, 2 calls a step (DPM++ 2S, arXiv 2211.01095, alg. 1); with weak guidance order 4, 1 call a step (UniPC,
    arXiv 2302.04867, alg. 1-2).

    Its grid is "lambda_uniform", with weak guidance and more than 10 calls "karras", unless `grid` or one of Diffusers'
    flags names another. Flow matching keeps the grid of its `timestep_spacing`.

    Args:
        guidance_scale: what the pipeline will be told; 2 or less is weak.
        lower_order_final: with weak guidance, lower the order towards the end, to 1 in the last step.
    """

    guidance_scale: float = 7.5
    lower_order_final: bool = True

    _closed_grid: ClassVar[bool] = False

    @property
    def _guided(self) -> bool:
        return self.config["guidance_scale"] > WEAK

    def _place(self, calls: int) -> Levels:
        return self._explicit_stages(self._own_grid(calls))

    def _own_grid(self, calls: int) -> Levels:
        if placement.chosen_grid(self.config) is not None or self.schedule.flow:
            return self._grid_levels(calls)
        return self._grid_levels(calls, grid="lambda_uniform" if calls <= FEW or self._guided else "karras")

    def _explicit_stages(self, levels: Levels) -> Levels:
        return in_steps(levels, 2) if self._guided else levels

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return auto(levels, config["guidance_scale"], lower_order_final=config["lower_order_final"])


SAMPLERS = (
    SamplerInfo(
        "auto",
        AutoScheduler,
        2,
        "arXiv 2211.01095, alg. 1",
        ("default", "automatic", "recommended"),
        calls="2",
        note="recommended: DPM++ 2S on lambda_uniform",
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
