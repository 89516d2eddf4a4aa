"""Initial value problems with known ends: what a sampler should arrive at from given starts.

Two Gaussian mixtures with exact scores, solved by DOP853, and the embedded model with guidance, solved by 500 calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import sd_ext

sys.path.insert(0, str(Path(__file__).parent.parent))
from sd_ext.schedulers.schedule import Levels
from tests.schedulers.mixture import Mixture

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = sd_ext.NoiseSchedule.from_config(SD)
CAPTIONS = ("red apple", "tiger face", "octopus", "yellow star", "penguin", "key")


@dataclass(frozen=True)
class Problem:
    """Starts at t = 999 and the clean ends that belong to them.

    Args:
        eps: (x, t told, level of x) -> predicted noise; x = alpha x0 + sigma eps of shape `(starts, ...)`, float64 or
            float32.
        start, end: shape `(starts, ...)`.
    """

    name: str
    title: str
    eps: Callable[[torch.Tensor, float, Levels], torch.Tensor]
    start: torch.Tensor
    end: torch.Tensor

    def rmse(self, x: torch.Tensor) -> float:
        return float((x.double() - self.end.double()).pow(2).mean().sqrt())


def mixture(components: int, dimensions: int, starts: int, seed: int) -> Problem:
    data, top = Mixture.random(components, dimensions, seed=seed), SCHEDULE.at([999.0])
    start = data.sample(starts, float(top.alpha[0]), float(top.sigma[0]), seed=seed + 1)

    def eps(x: torch.Tensor, t: float, _: Levels) -> torch.Tensor:
        level = SCHEDULE.at([t])
        return torch.from_numpy(data.eps(x.numpy(), float(level.alpha[0]), float(level.sigma[0])))

    end = data.solve(start, top.then(SCHEDULE.at_lambda([12.0])))
    title = f"{components} Gaussians in {dimensions} dimensions, exact score"
    return Problem(f"mixture{dimensions}", title, eps, torch.from_numpy(start), torch.from_numpy(end))


def solve(problem: Problem, scheduler, start: torch.Tensor | None = None) -> torch.Tensor:
    """The end a scheduler arrives at from the problem's starts; its calls are `len(scheduler.timesteps)`.

    The network is told what the scheduler tells it: a truncated or repeated timestep is an error of the scheduler's.
    """
    # Schedulers in sigma space hold x / alpha; the starts are theirs once their own scaling is undone.
    one = torch.ones(1, 1, dtype=torch.float64)
    x = problem.start if start is None else start
    x = x / scheduler.scale_model_input(one, scheduler.timesteps[0])
    levels = getattr(scheduler, "levels", None)
    for i, t in enumerate(scheduler.timesteps):
        told = float(t)
        # Fitted samplers tell the network another timestep than that of the latent's noise.
        level = levels[i : i + 1] if getattr(levels, "apart", False) else SCHEDULE.at([told])
        eps = problem.eps(scheduler.scale_model_input(x, t), told, level)
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    return x


def embedded(guidance: float, seeds: int = 1) -> Problem:
    """The embedded model's latents for six captions; its own 500-call solution is the end."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    captions = list(CAPTIONS) * seeds
    with torch.no_grad():
        words, nothing = pipe.encode_prompt(captions, "cpu", 1, True)
    both = torch.cat([nothing, words])

    def eps(x: torch.Tensor, t: float, level: Levels) -> torch.Tensor:
        alpha, sigma = float(level.alpha[0]), float(level.sigma[0])
        with torch.no_grad():
            out = pipe.unet(torch.cat([x, x]).float(), torch.tensor(t), encoder_hidden_states=both).sample.to(x.dtype)
        v = out[: len(x)] + guidance * (out[len(x) :] - out[: len(x)])
        return alpha * v + sigma * x

    generator = torch.Generator().manual_seed(0)
    size = pipe.unet.config["sample_size"]
    start = torch.randn(
        len(captions), pipe.unet.config["in_channels"], size, size, generator=generator, dtype=torch.float64
    )
    open_problem = Problem("", "", eps, start, start)
    reference = sd_ext.make_scheduler("dpm++ 3m exact", SD, grid="karras")
    reference.set_timesteps(500)
    end = solve(open_problem, reference)
    return Problem("embedded", f"the embedded model, guidance {guidance}, its own 500-call solution", eps, start, end)
