"""Pictures larger than the training size: the first steps compose them on a smaller grid."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, ClassVar, Literal

import torch

from ...errors import InputError
from ..inside import levels
from ..inside.hooks import Hooks
from ..inside.host import Host
from ..inside.noise import tells_log_sigma
from ..inside.shrinking import Shrink, pairs, resized_residuals
from .feature import Feature, Inner, Options
from .options import Option

TRAINING_TIMESTEPS = 1000
COMPOSITION = 0.4  # the fraction of the noise schedule, from pure noise on, in which a picture is composed
NEAR_TRAINING_SIZE = 1.2  # up to this factor above the training size, subjects are not repeated


class HighRes(Feature):
    """Downscales features in early steps, for pictures 1.5 to 4 times the training size.

    A U-Net composes a picture within the range it was trained on; in a larger picture each region becomes a picture of
    its own, and subjects repeat. While the composition is decided, everything below one of the first downsamplers
    therefore runs on a grid of the training size: features are shrunk after that downsampler, and the matching
    upsampler restores their size. Sources: Kohya's "Deep Shrink" (2023), and the resolution-aware U-Net of HiDiffusion,
    Zhang et al. 2023, arXiv 2311.17528, section 4.1. Their windowed attention (section 4.2) is `tile_size="auto"`,
    `tile_shift=True`.

    Both were published for models of three or four levels, in which the lower levels compose the picture. In a model of
    two levels, such as the embedded one, the full-size level composes too and would repeat the subject in the last
    steps. There every step is shrunk, at the price of detail.

    Options:
        highres_factor: how much to shrink; 1 is not at all. "auto" is the square root of (picture's area / training
            area), so that other aspect ratios with the training area are left alone; below 1.2 it is 1.
        highres_until: the fraction of the noise schedule, from pure noise on, that is shrunk: timesteps of at least
            1000 (1 - highres_until). In text-to-image with an even grid this is the fraction of steps; image-to-image
            starts later and shrinks fewer steps. None is 0.4, or 1 in a model of two levels.
        highres_block: the down block after whose downsampler features are shrunk. With 0, the least work is at full
            size.
    """

    name = "high resolution"
    options: ClassVar[dict[str, Option]] = {
        "highres_factor": Option(
            1.0,
            Literal["auto"] | float,
            'how much early steps are shrunk; "auto" is the picture beside the training size (arXiv 2311.17528)',
            lambda value: value == "auto" or 1 <= value <= 8,
            '"auto" or a number from 1 to 8',
        ),
        "highres_until": Option(
            None,
            float | None,
            "the share of the noise schedule that is shrunk; None is 0.4, and 1 in a model of two levels",
            lambda value: value is None or 0 <= value <= 1,
            "a share of the noise schedule from 0 to 1, or None",
        ),
        "highres_block": Option(0, int, "the down block after which features are shrunk"),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        return options["highres_factor"] == 1 or options["highres_until"] == 0

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.given, until, self.block = (options[name] for name in self.options)
        unet = host.network
        if self.given == "auto":
            self.trained = math.prod(levels.training_size(unet, 'highres_factor="auto"'))
        self.pairs, self.hooks = pairs(unet), Hooks()
        known = sorted(self.pairs)
        if self.block not in known:
            allowed = f"one of {', '.join(map(str, known))}" if known else "nothing: no down block has a downsampler"
            raise InputError(f"highres_block must be {allowed} in this model, got {self.block!r}")
        usual = 1.0 if len(known) == 1 else COMPOSITION
        self.share = usual if until is None else until
        self.last = TRAINING_TIMESTEPS * (1 - self.share)
        self.shrinks = {level: Shrink() for level in known if level >= self.block}

    def install(self) -> None:
        """Put hooks on the downsamplers and upsamplers from `highres_block` on; `forward` activates them."""
        for level, shrink in self.shrinks.items():
            shrink.install(*self.pairs[level], self.hooks)

    def undo(self) -> None:
        """Remove the hooks."""
        self.hooks.remove()

    def forward(
        self,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the blocks below `highres_block` on a smaller grid, if the step is an early one."""
        shrinks = self.shrinks
        factor = self.factor(sample.shape[-2:]) if self.is_early() else 1.0
        if factor == 1:
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        for level, shrink in shrinks.items():
            shrink.factor = factor if level == self.block else 1.0
            shrink.active = True
        try:
            kwargs = resized_residuals(self.host.network, sample.shape[-2:], kwargs, self.block, factor)
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        finally:
            for shrink in shrinks.values():
                shrink.active = False

    def reuse_key(self) -> Hashable:
        """Whether the step is shrunk: features of such a step do not fit others."""
        return self.is_early()

    def is_early(self) -> bool:
        """Whether the current step is in the first `highres_until` of the noise schedule."""
        call = self.host.call
        if call is None:
            return False
        told = self.host.told
        if told.scheduler is not None and tells_log_sigma(told.scheduler):  # no trained timesteps: by steps
            return call.total is not None and call.step < self.share * call.total
        return call.timestep >= self.last

    def factor(self, size: tuple[int, ...]) -> float:
        """How much to shrink latents of this height and width; 1 is not at all."""
        if self.given != "auto":
            return float(self.given)
        factor = math.sqrt(math.prod(size) / self.trained)
        return factor if factor >= NEAR_TRAINING_SIZE else 1.0
