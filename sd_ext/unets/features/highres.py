"""Pictures larger than the training size: the first steps compose them on a smaller grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Literal

import torch

from ...errors import InputError
from ..inside import levels
from ..inside.hooks import Hooks
from ..inside.host import Host
from ..inside.shrinking import Shrink, pairs, resized_residuals
from .feature import Feature, Inner, Options

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
    options: ClassVar[dict[str, Any]] = {"highres_factor": 1.0, "highres_until": None, "highres_block": 0}
    kinds: ClassVar[dict[str, Any]] = {
        "highres_factor": Literal["auto"] | float,
        "highres_until": float | None,
        "highres_block": int,
    }

    def is_neutral(self, options: Options) -> bool:
        return options["highres_factor"] == 1 or options["highres_until"] == 0

    def validate(self, unet: Host, options: Options) -> None:
        factor, until, block = (options[name] for name in self.options)
        if factor == "auto":
            levels.training_size(unet, 'highres_factor="auto"')
        elif not 1 <= factor <= 8:
            raise InputError(f'highres_factor must be "auto" or a number from 1 to 8, got {factor!r}')
        if until is not None and not 0 <= until <= 1:
            raise InputError(f"highres_until must be a share of the noise schedule from 0 to 1, or None; got {until!r}")
        known = sorted(pairs(unet))
        if block not in known:
            allowed = f"one of {', '.join(map(str, known))}" if known else "nothing: no down block has a downsampler"
            raise InputError(f"highres_block must be {allowed} in this model, got {block!r}")

    def install(self, unet: Host, options: Options) -> Callable[[], None]:
        """Put hooks on the downsamplers and upsamplers from `highres_block` on; `forward` activates them."""
        hooks = Hooks()
        shrinks = {level: Shrink() for level in pairs(unet) if level >= options["highres_block"]}
        for level, shrink in shrinks.items():
            shrink.install(*pairs(unet)[level], hooks)
        unet.installed[self.name] = shrinks

        def undo() -> None:
            hooks.remove()
            del unet.installed[self.name]

        return undo

    def forward(
        self,
        unet: Host,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Run the blocks below `highres_block` on a smaller grid, if the step is an early one."""
        options, shrinks = unet.config, unet.installed[self.name]
        factor = self.factor(unet, options, sample.shape[-2:]) if self.is_early(unet, options) else 1.0
        if factor == 1:
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        for level, shrink in shrinks.items():
            shrink.factor = factor if level == options["highres_block"] else 1.0
            shrink.active = True
        try:
            kwargs = resized_residuals(unet, sample.shape[-2:], kwargs, options["highres_block"], factor)
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        finally:
            for shrink in shrinks.values():
                shrink.active = False

    def reuse_key(self, unet: Host, options: Options) -> Hashable:
        """Whether the step is shrunk: features of such a step do not fit others."""
        return self.is_early(unet, options)

    def is_early(self, unet: Host, options: Options) -> bool:
        """Whether the current step is in the first `highres_until` of the noise schedule."""
        until = options["highres_until"]
        if until is None:
            until = 1.0 if len(pairs(unet)) == 1 else COMPOSITION
        return unet.call is not None and unet.call.timestep >= TRAINING_TIMESTEPS * (1 - until)

    def factor(self, unet: Host, options: Options, size: tuple[int, ...]) -> float:
        """How much to shrink latents of this height and width; 1 is not at all."""
        if options["highres_factor"] != "auto":
            return float(options["highres_factor"])
        trained = math.prod(levels.training_size(unet, 'highres_factor="auto"'))
        factor = math.sqrt(math.prod(size) / trained)
        return factor if factor >= NEAR_TRAINING_SIZE else 1.0
