"""CFG++: samplers that take their noise from the unconditional prediction, and guidance as a shift of the picture.

Classifier-free guidance mixes the predictions with and without the prompt and steps along the mixture, which leaves
the pictures that the model knows. CFG++ (Chung et al. 2024, arXiv 2406.08070, algorithm 2) goes to the guided picture
p, but renoises it with the noise of the unconditional prediction u:

    x' = alpha' p + sigma' (x - alpha u) / sigma

Any sampler has such a form: its own step with u in the place of the prediction, and alpha' (p - u) added. Those here
are written with the corrections that ComfyUI's samplers of these names have. All are tables of two fields: the
unconditional prediction comes from `sd_ext.board`. Where there is no guidance, p = u, each is the plain sampler.

Guidance is weaker here: a pipeline's `guidance_scale` of 1 to 2 does what 5 to 12 does elsewhere, and Diffusers
switches guidance off at 1 and below.
"""

from __future__ import annotations

from typing import ClassVar

from ..base import TableScheduler
from ..info import SamplerInfo
from ..kernel import Kernel
from ..multistage import MultiCallScheduler, ancestral_middle, between, multistage
from ..schedule import Levels
from ..table import Row, Table, build
from ..transfer import fresh_noise
from .first_order import SigmaStart

__all__ = [
    "DPMSolver2SAncestralCFGPlusPlusScheduler",
    "DPMSolverMultistepCFGPlusPlusScheduler",
    "EulerCFGPlusPlusScheduler",
    "GradientEstimationCFGPlusPlusScheduler",
    "RESMultistepCFGPlusPlusScheduler",
]


def guided(kernel: Kernel, alpha: float) -> Row:
    """A first-order step of the unconditional prediction u, and the shift alpha' (p - u).

    Args:
        kernel: of the step.
        alpha: alpha' at its end.
    """
    return Row(kernel.a, (alpha,), u=(kernel.total - alpha,), noise=kernel.noise)


def euler_cfg_plus_plus(levels: Levels, eta: float = 0.0) -> Table:
    """Euler (DDIM) and, with `eta` > 0, its ancestral forms, with CFG++.

    Order 1 without guidance, 1 call a step. Other names: euler_cfg_pp, euler_ancestral_cfg_pp (eta = 1). Source: arXiv
    2406.08070, algorithm 2.

    Args:
        levels: n + 1 levels, the end included.
        eta: share of the posterior's standard deviation drawn afresh.
    """
    kernels = (Kernel.of(levels, i, i + 1, "x0", std=fresh_noise(levels, i, eta)) for i in range(len(levels) - 1))
    return build(levels, [guided(k, levels.alpha[i + 1]) for i, k in enumerate(kernels)], "x0")


def multistep_cfg_plus_plus(levels: Levels, eta: float = 0.0) -> Table:
    """DPM-Solver++ 2M and, with `eta` > 0, its SDE form, with CFG++.

    The correction is the distance from the last unconditional prediction to the guided one, as in ComfyUI's
    dpmpp_2m_cfg_pp. Order 2 without guidance and without noise, 1 call a step. Source: arXiv 2211.01095, algorithm 2,
    and 2406.08070.

    Args:
        levels: n + 1 levels, the end included.
        eta: strength of the SDE.
    """
    rows, lam = [], levels.lam
    for i in range(len(levels) - 1):
        kernel = Kernel.of(levels, i, i + 1, "x0", eta=eta)
        first = guided(kernel, levels.alpha[i + 1])
        if i == 0 or levels.sigma[i + 1] == 0:
            rows.append(first)
            continue
        c = kernel.total / 2 * (lam[i + 1] - lam[i]) / (lam[i] - lam[i - 1])
        rows.append(Row(first.x, (first.p[0] + c,), u=(first.u[0], -c), noise=first.noise))
    return build(levels, rows, "x0")


def ancestral_2s_cfg_plus_plus(levels: Levels, eta: float = 1.0) -> Table:
    """DPM++ 2S a with CFG++: the midpoint step of the unconditional prediction, and the shift of the first call.

    Order 1 with guidance, 2 without and at eta = 0; 2 calls a step. Other names: dpmpp_2s_ancestral_cfg_pp. Source:
    arXiv 2211.01095, algorithm 1, and 2406.08070.

    Args:
        levels: of all calls, with stages.
        eta: share of the ancestral noise.
    """

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        end = Kernel.of(levels, i, i + size, "x0", std=fresh_noise(levels, i, eta, i + size))
        alpha = levels.alpha[i + size]
        if size == 1:
            return [guided(end, alpha)]
        middle = Kernel.of(levels, i, i + 1, "x0")
        a = end.a / middle.a  # x at the step's beginning is (x - total u) / a of the first stage
        return [
            Row(middle.a, u=(middle.total,)),
            Row(a, (0.0, alpha), u=(end.total, -a * middle.total - alpha), noise=end.noise),
        ]

    return multistage(levels, step, "x0")


def res_multistep_cfg_plus_plus(levels: Levels, eta: float = 0.0) -> Table:
    """RES multistep and, with `eta` > 0, its ancestral forms, with CFG++.

    From the second step on the shift is made before the step and decays with it, as in ComfyUI's
    res_multistep_cfg_pp. Order 2 without guidance and at eta = 0, 1 call a step. Source: arXiv 2308.02157, algorithm 2,
    and 2406.08070.

    Args:
        levels: n + 1 levels, the end included.
        eta: share of the ancestral noise.
    """
    rows, before = [], 0.0
    for i in range(len(levels) - 1):
        kernel = Kernel.of(levels, i, i + 1, "x0", std=fresh_noise(levels, i, eta))
        if i == 0 or levels.sigma[i + 1] == 0:
            rows.append(guided(kernel, levels.alpha[i + 1]))
        else:
            newest, older = kernel.interpolate([0, -before / kernel.k])
            shift = kernel.a * levels.alpha[i]
            rows.append(Row(kernel.a, (shift,), u=(newest - shift, older), noise=kernel.noise))
        before = kernel.k
    return build(levels, rows, "x0")


def gradient_estimation_cfg_plus_plus(levels: Levels, gamma: float = 2.0) -> Table:
    """Gradient estimation with CFG++: the unconditional noise is overdrawn away from the last one.

    Order 1, 1 call a step; at gamma = 1 it is Euler with CFG++. Source: arXiv 2306.04848, section 5, and 2406.08070.

    Args:
        levels: n + 1 levels, the end included.
        gamma: weight of the newest noise.
    """
    levels, rows = levels.with_signal(), []
    for i in range(len(levels) - 1):
        down = levels.alpha[i + 1] / levels.alpha[i]
        removed = down * levels.sigma[i]
        over = (gamma - 1) * (levels.sigma[i + 1] - removed) if i and levels.sigma[i + 1] else 0.0
        rows.append(Row(down, (-removed,), u=(levels.sigma[i + 1] + over, *([-over] if i else []))))
    return build(levels, rows, "eps")


class TwoFields:
    """What the schedulers of this family have in common."""

    weighs_unconditional: ClassVar[bool] = True
    mild_guidance: ClassVar[bool] = True


class EulerCFGPlusPlusScheduler(TwoFields, SigmaStart):
    """Euler with CFG++; see `euler_cfg_plus_plus`.

    Order 1, 1 call a step; with eta fresh noise. Source: arXiv 2406.08070.

    Args:
        eta: share of the ancestral noise, 0 to 1.
    """

    eta: float = 0.0

    _ranges = (("eta", 0, 1),)

    def _table(self, levels: Levels, eta: float) -> Table:
        return euler_cfg_plus_plus(levels, self.config["eta"])


class DPMSolverMultistepCFGPlusPlusScheduler(TwoFields, TableScheduler):
    """DPM++ 2M with CFG++, and its SDE form; see `multistep_cfg_plus_plus`.

    Order 2 without guidance, 1 call a step; with eta fresh noise. Source: arXiv 2406.08070 and 2211.01095.

    Args:
        eta: strength of the SDE, 0 the deterministic solver, 1 the reverse-time SDE.
    """

    eta: float = 0.0

    _ranges = (("eta", 0, 1),)

    def _table(self, levels: Levels, eta: float) -> Table:
        return multistep_cfg_plus_plus(levels, self.config["eta"])


class DPMSolver2SAncestralCFGPlusPlusScheduler(TwoFields, MultiCallScheduler):
    """DPM++ 2S a with CFG++; see `ancestral_2s_cfg_plus_plus`.

    Order 2 without guidance, 2 calls a step, with fresh noise. Source: arXiv 2406.08070 and 2211.01095.

    Args:
        eta: share of the ancestral noise, 0 to 1.
    """

    eta: float = 1.0

    _ranges = (("eta", 0, 1),)

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return between(self.schedule, steps, i, [ancestral_middle(steps, i, self.config["eta"])])

    def _table(self, levels: Levels, eta: float) -> Table:
        return ancestral_2s_cfg_plus_plus(levels, self.config["eta"])


class RESMultistepCFGPlusPlusScheduler(TwoFields, TableScheduler):
    """RES multistep with CFG++; see `res_multistep_cfg_plus_plus`.

    Order 2 without guidance, 1 call a step; with eta fresh noise. Source: arXiv 2406.08070 and 2308.02157.

    Args:
        eta: share of the ancestral noise, 0 to 1.
    """

    eta: float = 0.0

    _ranges = (("eta", 0, 1),)

    def _table(self, levels: Levels, eta: float) -> Table:
        return res_multistep_cfg_plus_plus(levels, self.config["eta"])


class GradientEstimationCFGPlusPlusScheduler(TwoFields, SigmaStart):
    """Gradient estimation with CFG++; see `gradient_estimation_cfg_plus_plus`.

    Order 1, 1 call a step. Source: arXiv 2406.08070 and 2306.04848.

    Args:
        gamma: weight of the newest noise, 0 to 4; 1 is Euler.
    """

    gamma: float = 2.0

    _ranges = (("gamma", 0, 4),)

    def _table(self, levels: Levels, eta: float) -> Table:
        return gradient_estimation_cfg_plus_plus(levels, self.config["gamma"])


_CFG = "arXiv 2406.08070, alg. 2"

SAMPLERS = (
    SamplerInfo("euler cfg++", EulerCFGPlusPlusScheduler, 1, _CFG, ("euler cfg pp", "ddim cfg++", "ddim cfg pp")),
    SamplerInfo(
        "euler a cfg++",
        EulerCFGPlusPlusScheduler,
        1,
        _CFG,
        ("euler ancestral cfg++", "euler ancestral cfg pp"),
        options={"eta": 1.0},
        stochastic=True,
    ),
    SamplerInfo(
        "dpm++ 2m cfg++", DPMSolverMultistepCFGPlusPlusScheduler, 2, f"{_CFG}; 2211.01095", ("dpmpp 2m cfg pp",)
    ),
    SamplerInfo(
        "dpm++ 2m sde cfg++",
        DPMSolverMultistepCFGPlusPlusScheduler,
        2,
        f"{_CFG}; 2211.01095",
        ("dpmpp 2m sde cfg pp",),
        options={"eta": 1.0},
        stochastic=True,
    ),
    SamplerInfo(
        "dpm++ 2s a cfg++",
        DPMSolver2SAncestralCFGPlusPlusScheduler,
        2,
        f"{_CFG}; 2211.01095",
        ("dpmpp 2s ancestral cfg++", "dpmpp 2s ancestral cfg pp"),
        calls="2",
        stochastic=True,
    ),
    SamplerInfo(
        "res multistep cfg++", RESMultistepCFGPlusPlusScheduler, 2, f"{_CFG}; 2308.02157", ("res multistep cfg pp",)
    ),
    SamplerInfo(
        "res multistep a cfg++",
        RESMultistepCFGPlusPlusScheduler,
        2,
        f"{_CFG}; 2308.02157",
        ("res multistep ancestral cfg++", "res multistep ancestral cfg pp"),
        options={"eta": 1.0},
        stochastic=True,
    ),
    SamplerInfo(
        "gradient estimation cfg++",
        GradientEstimationCFGPlusPlusScheduler,
        1,
        f"{_CFG}; 2306.04848",
        ("gradient estimation cfg pp",),
    ),
)
