"""Runge-Kutta methods in sigma / alpha on eps, as in k-diffusion: Heun, Heun++, DPM2 and its ancestral form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..drop_in import CountsTraining
from ..info import SamplerInfo
from ..multistage import MultiCallScheduler, Stage, ancestral_middle, between, chain, multistage
from ..schedule import Levels
from ..table import Row, Table
from ..transfer import fresh_noise, transfer
from .churn import added_noise, keeps, raised_calls
from .first_order import ChurnScheduler, SigmaStart

__all__ = [
    "HeunDiscreteScheduler",
    "HeunPPDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
]


def heun(levels: Levels, s_noise: float = 1.0) -> Table:
    """Heun's method in sigma / alpha (Karras et al. 2022, arXiv 2206.00364, algorithm 1), on raised levels with churn
    (algorithm 2) or Restart's jumps: a step lands below the next step's level and adds the noise up to it.

    Order 2, 2 calls a step (1 for a step to sigma = 0). Other names: HeunDiscreteScheduler, "heun".

    Args:
        s_noise: factor on the added noise; other than 1 it leaves the levels.
    """
    std = added_noise(levels)
    if levels.stage is not None and levels.stage[0]:  # a start at a second call is a step of its own
        levels = levels.with_stages([0, *levels.stage[1:].tolist()])

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        a, whole = transfer(levels, i, "eps", std[i + size], j=i + size)
        noise = float(std[i + size]) * s_noise
        if size == 1:
            return [Row(a, (whole,), noise=noise)]
        end, half = transfer(levels, i, "eps")
        return chain([Stage(end, (half,)), Stage(a, (whole / 2, whole / 2), noise)])

    return multistage(levels, step, "eps", keeps(s_noise))


def heun_pp(levels: Levels) -> Table:
    """Heun++: a step's slope blends those at its two ends and at the end of the step after.

    The weights are sigma_next / (k sigma_first), k the number of slopes, so that the blend fades out as sigma falls.
    They do not meet the conditions of second order: per step it does better than Euler's method, per network call
    worse. 3 calls a step, 2 in the last but one and 1 in the last. Other names: "Heun++ 2", heunpp2. Source: ComfyUI's
    and Forge's sampler; there is no paper.
    """
    first = levels.with_signal().ratio[0]

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        # The step ends at level i + 1 of the solver steps, which is where its second call falls.
        j = i + size
        a, whole = transfer(levels, i, "eps", j=j)
        blend = [levels.ratio[i + k] / (size * first) for k in range(1, size)]
        stages = [Stage(a, (whole,))]
        if size == 3:
            far, one = transfer(levels, i, "eps", j=i + 2)[0], transfer(levels, i + 1, "eps")[1]
            stages.append(Stage(far, (far / a * whole, one)))
        if size > 1:
            stages.append(Stage(a, tuple(whole * w for w in (1 - sum(blend), *blend))))
        return chain(stages)

    return multistage(levels, step, "eps")


def dpm2(levels: Levels, eta: float = 0.0) -> Table:
    """The midpoint method, its middle at the geometric mean of sigma, and its ancestral form for eta > 0.

    Order 2 at eta = 0, 2 calls a step. Other names: DPM2, DPM2 a, KDPM2DiscreteScheduler, dpm_2. Source: DPM-Solver-2
    (arXiv 2206.00927, algorithm 1) with an Euler step in place of the exponential one, k-diffusion.
    """

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        std = fresh_noise(levels, i, eta, i + size)
        a, whole = transfer(levels, i, "eps", std, j=i + size)
        if size == 1:
            return [Row(a, (whole,), noise=std)]
        middle, half = transfer(levels, i, "eps")
        return chain([Stage(middle, (half,)), Stage(a, (0.0, whole), std)])

    return multistage(levels, step, "eps")


class HeunDiscreteScheduler(CountsTraining, ChurnScheduler, MultiCallScheduler):
    """Heun's method, and with churn; see `heun`.

    Order 2, 2 calls a step. Source: arXiv 2206.00364, alg. 1; with churn alg. 2, with fresh noise.

    Args:
        s_churn, s_tmin, s_tmax, s_noise: see `ChurnScheduler`; counted in solver steps.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return steps[i + 1 : i + 2]

    def _calls(self, steps: Levels, sizes: Sequence[int]) -> Levels:
        if not self.config["s_churn"]:
            return super()._calls(steps, sizes)
        return raised_calls(self._churned(steps), steps, sizes)

    def _table(self, levels: Levels, eta: float) -> Table:
        return heun(levels, self.config["s_noise"])


class HeunPPDiscreteScheduler(SigmaStart, MultiCallScheduler):
    """Heun++; see `heun_pp`.

    Order 1, 3 calls a step. Source: the samplers of ComfyUI and Forge; there is no paper.
    """

    _most: ClassVar[int] = 3

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return steps[i + 1 : i + size]

    def _tail(self, clean: bool) -> tuple[int, ...]:
        return (2, 1)

    def _table(self, levels: Levels, eta: float) -> Table:
        return heun_pp(levels)


class KDPM2DiscreteScheduler(CountsTraining, SigmaStart, MultiCallScheduler):
    """DPM2; see `dpm2`.

    Order 2, 2 calls a step. Source: arXiv 2206.00927, alg. 1.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def _table(self, levels: Levels, eta: float) -> Table:
        return dpm2(levels)


class KDPM2AncestralDiscreteScheduler(CountsTraining, SigmaStart, MultiCallScheduler):
    """DPM2 a; see `dpm2`.

    Order 2, 2 calls a step, with fresh noise. Source: arXiv 2206.00927, alg. 1.

    Args:
        eta: share of the ancestral noise, 0 to 1.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    eta: float = 1.0

    _ranges = (("eta", 0, 1),)

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return between(self.schedule, steps, i, [ancestral_middle(steps, i, self.config["eta"])])

    def _table(self, levels: Levels, eta: float) -> Table:
        return dpm2(levels, self.config["eta"])


_EDM = "arXiv 2206.00364"

SAMPLERS = (
    SamplerInfo("heun", HeunDiscreteScheduler, 2, f"{_EDM}, alg. 1", ("heun 2s",), calls="2"),
    SamplerInfo(
        "heun churn",
        HeunDiscreteScheduler,
        2,
        f"{_EDM}, alg. 2",
        ("heun with churn", "edm"),
        calls="2",
        stochastic=True,
        options={"s_churn": 5.0},
        note="adds noise back before each step",
    ),
    SamplerInfo(
        "heun++",
        HeunPPDiscreteScheduler,
        1,
        "ComfyUI, Forge",
        ("heunpp2", "heunpp", "heun++ 2", "heun++2"),
        calls="3",
        note="first order, for three calls a step",
    ),
    SamplerInfo(
        "dpm2",
        KDPM2DiscreteScheduler,
        2,
        "arXiv 2206.00927, alg. 1",
        ("dpm 2", "kdpm2"),
        calls="2",
    ),
    SamplerInfo(
        "dpm2 a",
        KDPM2AncestralDiscreteScheduler,
        2,
        "arXiv 2206.00927, alg. 1",
        ("dpm 2 a", "dpm2 ancestral", "dpm 2 ancestral", "kdpm2 a"),
        calls="2",
        stochastic=True,
    ),
)
