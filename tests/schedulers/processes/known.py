"""One config of Diffusers for every process, and what a right network says there, restated from Diffusers' formulas.

In these formulas x is x0 + sigma eps (or the flow's (1 - sigma) x0 + sigma eps), as in Diffusers; our latents are the
same in the scale in which the network reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

import sd_ext
from sd_ext.board import BOARD

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SVD = {
    **SD,
    "timestep_type": "continuous",
    "prediction_type": "v_prediction",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""Stable Video Diffusion's scheduler."""


@dataclass(frozen=True)
class Known:
    """A process.

    Args:
        config: of a scheduler of Diffusers.
        output: (x0, eps, sigma) to the network's output, sigma as `scheduler.sigmas` has it.
        told: sigma to the timestep; None where it is the training time.
        scale: what the latent is of x0 at sigma.
        mu: what `set_timesteps` is told.
    """

    config: Any
    output: Callable[[Any, Any, Any], Any]
    told: Callable[[float], float] | None
    scale: Callable[[float], float]
    mu: float | None = None


def vp(sigma: float) -> float:
    return 1 / math.sqrt(1 + sigma**2)


def epsilon(x0: Any, eps: Any, sigma: float) -> Any:
    return eps


def velocity(x0: Any, eps: Any, sigma: float) -> Any:
    """v of x = alpha x0 + sigma' eps with alpha^2 + sigma'^2 = 1."""
    return vp(sigma) * eps - sigma * vp(sigma) * x0


def edm(data: float, sign: float) -> Callable[[Any, Any, Any], Any]:
    """F of x0 = c_skip x + c_out F, as in Diffusers' `precondition_outputs`."""

    def output(x0: Any, eps: Any, sigma: float) -> Any:
        skip = data**2 / (sigma**2 + data**2)
        out = sign * sigma * data / (sigma**2 + data**2) ** 0.5
        return (x0 - skip * (x0 + sigma * eps)) / out

    return output


def boundary(x0: Any, eps: Any, sigma: float) -> Any:
    """F of a consistency model, as in Diffusers' `get_scalings_for_boundary_condition`."""
    skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
    out = (sigma - 0.002) * 0.5 / (sigma**2 + 0.25) ** 0.5
    return (x0 - skip * (x0 + sigma * eps)) / out


def flow(sign: float = 1.0) -> Callable[[Any, Any, Any], Any]:
    return lambda x0, eps, sigma: sign * (eps - x0)


d = diffusers
KNOWN: dict[str, Known] = {
    "betas": Known(d.DDIMScheduler(**SD, clip_sample=False).config, epsilon, None, vp),
    "zero SNR": Known(
        d.DDIMScheduler(
            **SD,
            clip_sample=False,
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        ).config,
        lambda x0, eps, s: 0 * eps - x0 if math.isinf(s) else velocity(x0, eps, s),
        None,
        lambda s: 0.0 if math.isinf(s) else vp(s),
    ),
    "CogVideoX": Known(
        d.CogVideoXDDIMScheduler(prediction_type="v_prediction", clip_sample=False, snr_shift_scale=3.0).config,
        velocity,
        None,
        vp,
    ),
    "SVD": Known(d.EulerDiscreteScheduler(**SVD).config, velocity, lambda s: 0.25 * math.log(s), vp),
    "flow": Known(d.FlowMatchEulerDiscreteScheduler(shift=3.0).config, flow(), lambda s: 1000 * s, lambda s: 1 - s),
    "flow by resolution": Known(
        d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02).config,
        flow(),
        lambda s: 1000 * s,
        lambda s: 1 - s,
        mu=0.9,
    ),
    "Mochi": Known(
        d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config, flow(-1.0), lambda s: 1000 * s, lambda s: s
    ),
    "MiniMax": Known(d.MiniMaxH3Scheduler(shift=12.0).config, flow(-1.0), lambda s: s, lambda s: s),
    "EDM": Known(
        d.EDMEulerScheduler().config,
        edm(0.5, 1.0),
        lambda s: 0.25 * math.log(s),
        lambda s: 1 / math.sqrt(s**2 + 0.25),
    ),
    "EDM v": Known(
        d.EDMDPMSolverMultistepScheduler(
            prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ).config,
        edm(1.0, -1.0),
        lambda s: 0.25 * math.log(s),
        vp,
    ),
    "Stable Audio": Known(
        d.CosineDPMSolverMultistepScheduler().config, edm(1.0, -1.0), lambda s: math.atan(s) * 2 / math.pi, vp
    ),
    "consistency": Known(
        d.CMStochasticIterativeScheduler(clip_denoised=False).config,
        boundary,
        lambda s: 250 * math.log(s),
        lambda s: 1 / math.sqrt(s**2 + 0.25),
    ),
    "Dance Diffusion": Known(
        d.IPNDMScheduler().config,
        lambda x0, eps, s: 0 * eps - x0 if math.isinf(s) else velocity(x0, eps, s),
        lambda s: math.atan(s) * 2 / math.pi,
        lambda s: 0.0 if math.isinf(s) else vp(s),
    ),
}


def make(name: str, known: Known, calls: int, **options: Any) -> Any:
    """A sampler of ours for a process, with a run announced."""
    scheduler = sd_ext.make_scheduler(name, known.config, **options)
    more = {} if known.mu is None else {"mu": known.mu}
    scheduler.set_timesteps(calls, **more)
    return scheduler


def to_the_point(scheduler: Any, known: Known, x0: float = 0.7, seed: int = 0) -> torch.Tensor:
    """The end of a run on data that is one point, from N(0, I); the network knows eps from x."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 4, 2, 2, generator=generator, dtype=torch.float64) * float(scheduler.init_noise_sigma)
    sigmas = scheduler.levels.ratio
    shown = scheduler.sigmas.double().tolist()
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = float(scheduler.levels.alpha[i]), float(scheduler.levels.sigma[i])
        eps = (scheduler.scale_model_input(x, t) - alpha * x0) / sigma
        m = known.output(x0, eps, shown[i] if scheduler.schedule.flow else float(sigmas[i]))
        BOARD.write(t, m, alone=True)  # read by tables of two fields
        x = scheduler.step(m, t, x, generator=generator).prev_sample
    return x
