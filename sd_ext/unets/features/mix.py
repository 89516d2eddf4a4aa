"""Guidance that mixes its two halves in other ways than u + w (c - u), built into the network, for every pipeline.

From the unconditional prediction u, the conditional one c and the pipeline's weight w a guided one g is made, and what
the pipeline is given is u and u + (g - u) / w. Its own u + w (...) is then g. Samplers of two fields find u and c on
`board`.

| options | |
|---|---|
| `apg_...` | adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416): c + (w - 1) times the difference's part orthogonal to c, which sharpens, with less or none of the part along c, which saturates |
| `cfg_zero_...` | CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): u is first scaled to be nearest to c; the first steps stand still |
| `cfg_threshold...` | dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487) of the guided x0 |
| `cfg_rescale` | the standard deviation of c (Lin et al. 2023, arXiv 2305.08891) |

Where several are on, each changes what the one before it in this table (save that u is scaled first) has made.
"""  # noqa: E501

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import torch

from ...board import BOARD
from ...errors import InputError
from ..inside import mixing
from ..inside.host import Host
from ..inside.noise import Noise
from ..inside.say import say
from .feature import Options
from .guidance import Calls, Guidance
from .options import Option

SHARE = {"fits": lambda value: 0 <= value <= 1, "allowed": "from 0 to 1"}


class GuidanceMix(Guidance):
    """Changes what a pipeline's guidance makes of the two halves of its batch.

    It acts where a batch is said to be guidance of a known weight (see `inside/told.py`). In training mode, and where
    the pipeline uses no guidance, nothing is changed.

    Options:
        apg_eta: how much of the difference along the conditional prediction is kept; 1 keeps all, the paper none.
        apg_norm: the greatest length of the difference; 0 is no limit. The paper has 7.5 for SD 2.1, 15 for SDXL.
        apg_momentum: how much of the last step's difference is added; the paper has -0.75 and -0.5.
        apg_of: what is projected: the predicted x0, as in the paper, or the network's output, as in Diffusers.
        cfg_zero_star: whether u is scaled.
        cfg_zero_steps: the number of first steps that leave the latents as they are.
        cfg_threshold: the percentile that is brought into range, such as 0.995; 0 is off.
        cfg_threshold_weight: the weight of the guidance whose range is kept; 1 is the range of c.
        cfg_rescale: the share of the rescaled prediction; 0 is off, the paper has 0.7.
    """

    name = "guidance"
    options: ClassVar[dict[str, Option]] = {
        "apg_eta": Option(
            1.0, float, "the share of guidance along the prediction (APG, arXiv 2410.02416); the paper has 0", **SHARE
        ),
        "apg_norm": Option(
            0.0, float, "greatest length of what guidance adds, 0 for any", lambda value: value >= 0, "0 or more"
        ),
        "apg_momentum": Option(
            0.0,
            float,
            "share of the last step's difference that is added; below 0 in the paper",
            lambda value: -1 < value < 1,
            "between -1 and 1",
        ),
        "apg_of": Option("x0", Literal["x0", "output"], 'what APG projects: "x0", or the network\'s "output"'),
        "cfg_zero_star": Option(False, bool, "the unconditional half is scaled first (CFG-Zero*, arXiv 2503.18886)"),
        "cfg_zero_steps": Option(
            0, int, "so many first steps leave the latents as they are", lambda value: value >= 0, "0 or more"
        ),
        "cfg_threshold": Option(
            0.0, float, "dynamic thresholding (arXiv 2205.11487): the percentile in range, such as 0.995", **SHARE
        ),
        "cfg_threshold_weight": Option(
            1.0, float, "the weight of the guidance whose range is kept", lambda value: value >= 0, "0 or more"
        ),
        "cfg_rescale": Option(
            0.0, float, "share of the prediction with the conditional one's deviation (arXiv 2305.08891)", **SHARE
        ),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        """Whether nothing is changed; what is projected, and which range is kept, do not matter alone."""
        modes = ("apg_of", "cfg_threshold_weight")
        return all(options[name] == option.neutral for name, option in cls.options.items() if name not in modes)

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.projects = any(options[name] != neutral for name, neutral in APG.items())

    def guide(self, calls: Calls) -> torch.Tensor:
        """The unconditional prediction, and the conditional one that makes the guided one of it."""
        output, sample = calls.plain(), calls.sample
        weight = self._weight(calls)
        if weight is None:
            return output
        u, c = output.chunk(2)
        BOARD.write_halves(calls.inputs["timestep"], u, c)
        x = sample.chunk(2)[1][:, : c.shape[1]]  # further channels are a mask and a picture
        guided = self._guided(x.float(), u.float(), c.float(), weight)
        return torch.cat([u, (u + (guided - u) / weight).to(c.dtype)])

    def _weight(self, calls: Calls) -> float | None:
        """The weight of guidance in this call; None if there is none, or if it cannot be changed, which is said."""
        told, call = self.host.told, self.host.call
        if call is None:
            return None
        if not calls.guided(self.named()):
            return None
        if told.guidance is None or told.guidance <= 0:
            say(logging.WARNING, f"{self.named()} changes nothing: the weight of guidance is not known, or not above 0")
            return None
        if self.values["cfg_rescale"] and getattr(told.pipe, "guidance_rescale", 0):
            raise InputError(
                "cfg_rescale and the pipeline's guidance_rescale would both rescale: leave one of them out"
            )
        return told.guidance

    def named(self) -> str:
        """The first option that is on."""
        return next(name for name, option in self.options.items() if self.values[name] != option.neutral)

    def _noise(self, option: str) -> Noise:
        call = self.host.call
        assert call is not None
        return Noise.of(self.host.told.scheduler, call.timestep, option)

    def _guided(self, x: torch.Tensor, u: torch.Tensor, c: torch.Tensor, weight: float) -> torch.Tensor:
        """What the pipeline is to get, `(pictures, channels, height, width)`.

        Args:
            x: the noisy latents of the same shape.
            u, c: the two predictions.
            weight: of guidance.
        """
        options, call = self.values, self.host.call
        assert call is not None
        if call.step < options["cfg_zero_steps"]:
            return self._noise("cfg_zero_steps").standing(x)
        if options["cfg_zero_star"]:
            u = mixing.best_scale(u, c) * u
        guided = self._projected(x, u, c, weight) if self.projects else u + weight * (c - u)
        if percentile := options["cfg_threshold"]:
            noise = self._noise("cfg_threshold")
            x0 = noise.x0(x, guided)
            within = noise.x0(x, u + options["cfg_threshold_weight"] * (c - u))
            guided = guided + (mixing.thresholded(x0, within, percentile) - x0) / noise.slope
        return mixing.rescaled(guided, c, options["cfg_rescale"]) if options["cfg_rescale"] else guided

    def _projected(self, x: torch.Tensor, u: torch.Tensor, c: torch.Tensor, weight: float) -> torch.Tensor:
        """Adaptive projected guidance, algorithm 1 of the paper."""
        options = self.values
        slope, onto = 1.0, c
        if options["apg_of"] == "x0":
            noise = self._noise("apg_of='x0'")
            slope, onto = noise.slope, noise.x0(x, c)
        difference = slope * (c - u)
        if options["apg_momentum"]:
            before = self.host.memory.get(self.name)
            if before is not None and before.shape == difference.shape:
                difference = difference + options["apg_momentum"] * before
            self.host.memory[self.name] = difference
        if options["apg_norm"]:
            difference = mixing.shortened(difference, options["apg_norm"])
        return c + (weight - 1) * mixing.project(difference, onto, options["apg_eta"]) / slope


APG = {name: GuidanceMix.options[name].neutral for name in ("apg_eta", "apg_norm", "apg_momentum")}
"""The options that switch projection on, with their neutral values."""
