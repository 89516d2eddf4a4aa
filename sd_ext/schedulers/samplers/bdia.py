"""BDIA: DDIM that can be run backwards exactly, for editing."""

from __future__ import annotations

from ..base import TableScheduler
from ..info import SamplerInfo
from ..schedule import NO_SIGNAL, Levels
from ..table import Row, Table, build
from ..transfer import transfer

__all__ = ["BDIAScheduler"]


def bdia(levels: Levels, gamma: float = 1.0) -> Table:
    """Bi-directional integration approximation of DDIM.

    The step before was made with the eps at its beginning. Now that the eps at its end is known, a share gamma of it is
    taken back and made again with that one, from the x at its beginning, which is kept. At gamma = 1, x_{i+2} is x_i
    and two increments that depend on x_{i+1} alone: from any two neighbours the whole run can be computed back to its
    beginning, exactly.

    Order 2 at gamma = 1, else 1; 1 call a step. Other names: BDIA-DDIM. Source: Zhang et al. 2023, arXiv 2307.10829,
    eq. 16-18.

    Args:
        levels: n + 1 levels, the end included.
        gamma: 0, which is DDIM, to 1.
    """
    levels, rows = levels.with_signal(), []
    for i in range(len(levels) - 1):
        a, b = transfer(levels, i, "eps")
        if i == 0 or levels.alpha[i - 1] < NO_SIGNAL:  # nothing can be taken back to where there is no signal
            row = Row(a, (b,))
        else:
            up, fresh = transfer(levels, i, "eps", j=i - 1)
            row = Row(a - gamma * up, (b - gamma * fresh,), stash=gamma)
        rows.append((row, Row(x=1.0)))
    return build(levels, rows, "eps")


class BDIAScheduler(TableScheduler):
    """BDIA; see `bdia`.

    Order 2, 1 below gamma = 1; 1 call a step. Source: arXiv 2307.10829, eq. 16-18.

    Args:
        gamma: 0, which is DDIM, to 1, which can be run backwards exactly.
        set_alpha_to_one: end clean; False ends at t = 0's level, as Stable Diffusion does.
    """

    gamma: float = 1.0
    set_alpha_to_one: bool = True
    timestep_spacing: str = "leading"

    _ranges = (("gamma", 0, 1),)

    def _end(self) -> Levels:
        return super()._end() if self.config["set_alpha_to_one"] else self._least_noise()

    def _table(self, levels: Levels, eta: float) -> Table:
        return bdia(levels, self.config["gamma"])


SAMPLERS = (
    SamplerInfo(
        "bdia ddim",
        BDIAScheduler,
        2,
        "arXiv 2307.10829, eq. 16-18",
        ("bdia", "bdia-ddim"),
        note="can be run backwards exactly",
    ),
)
