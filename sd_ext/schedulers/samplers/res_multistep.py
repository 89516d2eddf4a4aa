"""RES multistep: the exact exponential integral of the line through two x0 predictions, and its ancestral form."""

from __future__ import annotations

from ..base import TableScheduler
from ..info import SamplerInfo
from ..kernel import Kernel
from ..schedule import Levels
from ..table import Row, Table, build
from ..transfer import fresh_noise

__all__ = ["RESMultistepScheduler"]


def res_multistep(levels: Levels, eta: float = 0.0) -> Table:
    """The line through the last two predictions, integrated to below the next level, then noise up to it.

    The predictions' distance is counted in deterministic parts: as long as the step before went down. Order 2 at
    eta = 0, 1 call a step. Deterministic it is DPM++ 2M with `solver_type="heun"`. Other names:
    res_multistep, res_multistep_ancestral (eta = 1). Source: Zhang et al. 2023, arXiv 2308.02157, algorithm 2.
    """
    rows, before = [], 0.0
    for i in range(len(levels) - 1):
        kernel = Kernel.of(levels, i, i + 1, "x0", std=fresh_noise(levels, i, eta))
        last = levels.sigma[i + 1] == 0
        p = (kernel.total,) if i == 0 or last else kernel.interpolate([0, -before / kernel.k])
        rows.append(Row(kernel.a, p, noise=kernel.noise))
        before = kernel.k
    return build(levels, rows, "x0")


class RESMultistepScheduler(TableScheduler):
    """RES multistep; see `res_multistep`.

    Order 2, 1 call a step; with eta fresh noise. Source: arXiv 2308.02157, alg. 2.

    Args:
        eta: share of the ancestral noise, 0 deterministic to 1.
    """

    eta: float = 0.0

    _ranges = (("eta", 0, 1),)

    def _table(self, levels: Levels, eta: float) -> Table:
        return res_multistep(levels, self.config["eta"])


_RES = "arXiv 2308.02157, alg. 2"

SAMPLERS = (
    SamplerInfo(
        "res multistep", RESMultistepScheduler, 2, _RES, ("res 2m", "res 2m ode"), note="DPM++ 2M, integrated exactly"
    ),
    SamplerInfo(
        "res multistep a",
        RESMultistepScheduler,
        2,
        _RES,
        ("res multistep ancestral",),
        stochastic=True,
        options={"eta": 1.0},
    ),
)
