"""From what a network predicts to the picture that it has in mind, x0, and back: what guidance on x0 needs.

A network sees x = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1 (of flow matching: alpha + sigma = 1) and predicts
eps, v = alpha eps - sigma x0, x0 itself, or the flow eps - x0. Each is linear in x0, given x. Networks of EDM see data
in units of their standard deviation d, so that alpha^2 d^2 + sigma^2 = 1, and predict v = alpha d eps - sigma x0 / d,
or that with its sign turned (Karras et al. 2022, arXiv 2206.00364, eq. 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import InputError

EDM = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
"""Diffusers' schedulers of networks with EDM's preconditioning; ours have the process "edm" in their config."""

OTHERS = ("angle", "consistency", "cosine", "unit_flow")
"""Processes of our schedulers whose networks predict something else, or are told of the noise in another way."""


def has_preconditioning(scheduler: Any) -> bool:
    """Whether the network is one of EDM, whose prediction is in units of the data's deviation."""
    config = getattr(scheduler, "config", {})  # a loop of one's own may have a scheduler without
    return config.get("process") == "edm" or type(scheduler).__name__ in EDM


def is_of_flow(scheduler: Any) -> bool:
    """Whether it is one of Diffusers' schedulers of flow matching, whose configs name no prediction."""
    return "Flow" in type(scheduler).__name__ or "shift" in scheduler.config


def tells_log_sigma(scheduler: Any) -> bool:
    """Whether the network is told log(sigma) / 4 in the place of a trained timestep (arXiv 2206.00364, table 1)."""
    return has_preconditioning(scheduler) or getattr(scheduler, "config", {}).get("timestep_type") == "continuous"


def noise_over_signal(scheduler: Any, timestep: float) -> float | None:
    """sigma / alpha at a timestep; its logarithm is interpolated between trained timesteps. None if it is not known.

    Args:
        scheduler: one with `alphas_cumprod`.
        timestep: in trained timesteps, which need not be whole; or what `tells_log_sigma` speaks of.
    """
    if tells_log_sigma(scheduler):
        return float(np.exp(4 * timestep))
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        return None
    alphas = np.clip(np.asarray(alphas.cpu(), dtype=np.float64), 1e-12, None)  # keeps it finite at zero terminal SNR
    return float(np.exp(np.interp(timestep, np.arange(len(alphas)), 0.5 * np.log((1 - alphas) / alphas))))


@dataclass(frozen=True)
class Noise:
    """How noisy the latents of a call are, and what the network makes of them.

    Args:
        alpha, sigma: see the top of this file.
        predicts: "epsilon", "v_prediction", "sample" or "flow_prediction".
        deviation: of the data, in whose units v is; below 0 where the network predicts v with its sign turned.
    """

    alpha: float
    sigma: float
    predicts: str
    deviation: float = 1.0

    @classmethod
    def of(cls, scheduler: Any, timestep: float, option: str) -> Noise:
        """The noise at a timestep of a run.

        Args:
            scheduler: the run's; None if nobody has said which.
            timestep: in trained timesteps.
            option: for which option of a U-Net it is asked, for messages.

        Raises:
            InputError: the scheduler is not known, or does not say what the network was trained on.
        """
        if scheduler is None:
            raise InputError(
                f"{option} needs to know the noise of each step: call the U-Net by a pipeline of Diffusers, or within "
                "sd_ext.sampling(unet, guidance_scale=..., scheduler=...)"
            )
        config = scheduler.config
        predicts = config.get("prediction_type")
        if has_preconditioning(scheduler) and predicts in ("epsilon", "v_prediction"):
            return cls._of_edm(float(np.exp(4 * timestep)), config.get("sigma_data") or 0.5, predicts)
        if config.get("sigma_data") is not None or config.get("process") in OTHERS:
            raise InputError(
                f"{option} needs to know what the network predicts, which of the network of this "
                f"{type(scheduler).__name__} is not known here"
            )
        if predicts == "flow_prediction" or (predicts is None and is_of_flow(scheduler)):
            sigma = timestep / config.get("num_train_timesteps", 1000)
            return cls(1 - sigma, sigma, "flow_prediction")
        ratio = noise_over_signal(scheduler, timestep)
        if ratio is None or predicts not in ("epsilon", "v_prediction", "sample"):
            what = "no alphas_cumprod" if ratio is None else f"the prediction type {predicts!r}"
            raise InputError(f"{option} needs to know the noise of each step: {type(scheduler).__name__} has {what}")
        alpha = (1 + ratio**2) ** -0.5
        return cls(alpha, ratio * alpha, predicts)

    @classmethod
    def _of_edm(cls, ratio: float, data: float, predicts: str) -> Noise:
        """Of a network of EDM: sigma / alpha, the data's deviation, and what Diffusers calls the sign."""
        alpha = (data**2 + ratio**2) ** -0.5
        return cls(alpha, ratio * alpha, "v_prediction", data if predicts == "v_prediction" else -data)

    @property
    def slope(self) -> float:
        """By how much x0 changes with the prediction."""
        if self.predicts == "epsilon":
            return -self.sigma / self.alpha
        if self.predicts == "v_prediction":
            return -self.sigma * self.deviation
        return 1.0 if self.predicts == "sample" else -self.sigma

    def x0(self, x: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """The picture that is predicted.

        Args:
            x: the noisy latents as the network sees them, `(batch, channels, height, width)`.
            predicted: what it predicts, of the same shape.
        """
        at_v = self.alpha * self.deviation**2
        at_zero = {"epsilon": 1 / self.alpha, "v_prediction": at_v, "sample": 0.0, "flow_prediction": 1.0}
        return at_zero[self.predicts] * x + self.slope * predicted

    def epsilon(self, x: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """The noise that is predicted; arguments as of `x0`."""
        if self.predicts == "epsilon":
            return predicted
        if self.predicts == "v_prediction":
            return self.alpha * self.deviation * predicted + self.sigma * x
        return (x - self.alpha * self.x0(x, predicted)) / self.sigma

    def standing(self, x: torch.Tensor) -> torch.Tensor:
        """The prediction of a network that lets the latents stand still.

        Along a step, x moves by v in the angle whose cosine is alpha, or by the flow in sigma; both are then 0.
        """
        still = {"epsilon": self.sigma, "sample": self.alpha}
        return still.get(self.predicts, 0.0) * x
