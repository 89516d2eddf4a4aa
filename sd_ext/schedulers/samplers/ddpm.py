"""DDPM's ancestral sampling with the variances people use."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch

from ...errors import InputError
from ..base import TableScheduler
from ..info import SamplerInfo
from ..run import Run
from ..schedule import Array, Levels
from ..table import Preserves, Row, Table, build
from ..transfer import posterior_std, transfer

__all__ = ["DDPMScheduler"]

VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]
VARIANCES = (None, *get_args(VarianceType))
"""Values of the option `variance_type`; samplers other than DDPM take no variance from the network, whatever it is."""


def variance_range(levels: Levels) -> Array:
    """(log posterior variance, log forward variance) of each step, shape `(n, 2)`.

    The forward variance is that of x_t given x_s, beta_t where the steps are the training's own. They bound the
    variance a network may learn (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15). -inf where the end is clean.
    """
    alpha, sigma = levels.alpha, levels.sigma
    small = (
        np.array([posterior_std(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]) for i in range(len(levels) - 1)]) ** 2
    )
    large = sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:] * sigma[1:]) ** 2
    with np.errstate(divide="ignore"):
        return np.stack([np.log(small), np.log(np.where(small > 0, large, 0.0))], axis=1)


def ddpm(levels: Levels, variance_type: VarianceType = "fixed_small") -> Table:
    """The posterior's mean plus noise of the chosen variance; none in the step to a clean end.

    Order 1 (weak), 1 call a step. Source: Ho et al. 2020, arXiv 2006.11239, algorithm 2 and eq. 6-7. On epsilon the
    mean is (x - beta_t / sqrt(1 - alphabar_t) eps) / sqrt(alpha_t); simplified write-ups drop the root.
    `fixed_large` is the upper bound beta_t, right for N(0, I) data only, so these tables keep the mean, not the
    marginal. For `learned` and `learned_range` the row carries a noise weight of 1, which the network's variance
    multiplies at run time.
    """
    small, large = np.exp(variance_range(levels) / 2).T
    if variance_type.startswith("learned"):
        noise = (small > 0).astype(float)
    else:
        noise = large if variance_type.startswith("fixed_large") else small
    rows = []
    for i in range(len(levels) - 1):
        a, b = transfer(levels, i, "x0", small[i])
        rows.append(Row(a, (b,), noise=noise[i]))
    preserves: Preserves = "marginal" if variance_type.startswith("fixed_small") else "mean"
    return build(levels, rows, "x0", preserves)


class DDPMScheduler(TableScheduler):
    """DDPM's ancestral sampling; see `ddpm`.

    Order 1, 1 call a step, with fresh noise. Source: arXiv 2006.11239, alg. 2.

    Args:
        variance_type: "fixed_small" (or None), "fixed_small_log", "fixed_large", "fixed_large_log", "learned" or
            "learned_range".
    """

    variance_type: str | None = "fixed_small"
    timestep_spacing: str = "leading"
    clip_sample: bool = True

    def _setup(self) -> None:
        super()._setup()
        self._choice("variance_type", VARIANCES)

    @property
    def not_exportable(self) -> str | None:
        """Why it cannot be exported, if it cannot."""
        kind = self.config["variance_type"]
        return (
            f"variance_type {kind!r} takes its noise from the network" if kind in ("learned", "learned_range") else None
        )

    def _table(self, levels: Levels, eta: float) -> Table:
        return ddpm(levels, self.config["variance_type"] or "fixed_small")

    def _get_variance(self, t: int) -> torch.Tensor:
        """The posterior's variance in the step from a timestep of the run, by Diffusers' name for it.

        Args:
            t: the timestep; without a run, one of training's.
        """
        before = int(self.previous_timestep(t))
        end = self.schedule.at([before]) if before >= 0 else self._end()
        return torch.tensor(np.exp(variance_range(self.schedule.at([t]).then(end))[0, 0]), dtype=torch.float32)

    def _noise(self, x: torch.Tensor, extra: torch.Tensor | None, run: Run, *source: Any) -> torch.Tensor:
        noise, kind = super()._noise(x, extra, run, *source), self.config["variance_type"] or "fixed_small"
        if not kind.startswith("learned"):
            return noise
        if extra is None:
            raise InputError(f"variance_type {kind!r} needs a network with twice the latent's channels")
        if kind == "learned":
            return noise * extra.to(noise.dtype).sqrt()
        ((small, large),) = variance_range(run.table.levels[run.position : run.position + 2]).tolist()
        share = (extra.to(noise.dtype) + 1) / 2
        return noise * torch.exp(0.5 * (small + (large - small) * share))


SAMPLERS = (
    SamplerInfo("ddpm", DDPMScheduler, 1, "arXiv 2006.11239, alg. 2", stochastic=True, note="made for many steps"),
)
