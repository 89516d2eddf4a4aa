"""Self-attention guidance (SAG, Hong et al. 2022, arXiv 2210.00939), built into the network.

The prediction is led away from the one for a picture that is blurred where the network attends most:

    guided + scale (u - u for the blurred picture)

with u the unconditional prediction, or without guidance the only one. As in `perturbed`, the same difference is added
to every branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.nn import functional

from ...seams.diffusers import attention as layers
from ..attention.classes import MemoryEfficientAttnProcessor
from ..inside import views
from ..inside.blur import grid_of
from ..inside.host import Host
from ..inside.noise import Noise
from .feature import PREDICTION, Options
from .guidance import Calls, Guidance
from .options import Option
from .perturbations import find_self_attention

WIDTH, SIGMA = 9, 1.0
"""The blur's width and standard deviation, in latents."""


class WatchedAttention(MemoryEfficientAttnProcessor):
    """Self-attention that keeps how much each token is attended to, `(batch, tokens)`: 1 is the mean."""

    seen: torch.Tensor

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The attention's result, `(batch, tokens, channels)`."""
        query, key, _ = layers.by_heads(attn, self.query(attn, x), attn.to_k(context), attn.to_k(context))
        scores = torch.einsum("bqhc,bkhc->bhqk", query.float(), key.float()) * attn.scale
        self.seen = scores.softmax(-1).mean(1).sum(1)
        return super().attend(attn, x, context, mask)


class SelfAttentionGuidance(Guidance):
    """Adds a further call of the network, for the unconditional samples.

    The noise of a step is the scheduler's, which a pipeline tells.

    Options:
        sag_scale: factor of the difference; 0 is off, the paper uses up to 1.
    """

    name = "self-attention guidance"
    options: ClassVar[dict[str, Option]] = {
        "sag_scale": Option(0.0, float, "self-attention guidance (SAG, arXiv 2210.00939); Diffusers has 0.75"),
    }

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.layer = next(iter(find_self_attention(host.network, "sag_scale", ["mid"])))

    def takes(self) -> Mapping[tuple[str, str], str]:
        """The prediction that other guidance starts from."""
        return {PREDICTION: "sag_scale"}

    def needs(self) -> Mapping[tuple[str, str], str]:
        """The prediction as the network makes it, and the attention in its middle at every step."""
        return {
            PREDICTION: "sag_scale",
            ("grid of tokens", self.layer): "sag_scale",
            ("computation at every step", "mid_block"): "sag_scale",
        }

    def guide(self, calls: Calls) -> torch.Tensor:
        """The prediction with scale (u - u for the blurred picture) added to each branch."""
        watched = WatchedAttention()
        with views.processed(self.host, [self.layer], watched):
            output = calls.plain()
        branches = calls.branches("sag_scale")
        if branches is None:
            return output
        u, inputs = output.chunk(branches)[0], calls.half("unconditional", branches)
        inputs["sample"] = self._blurred(inputs["sample"], u, watched.seen[: len(u)])
        half = "unconditional" if branches == 2 else "conditional"
        push = self.values["sag_scale"] * (u - calls.further(inputs, half))
        return output + torch.cat([push] * branches)

    def _blurred(self, sample: torch.Tensor, predicted: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The noisy latents of the picture that is blurred where it is attended to, with the same noise (section 4.2).

        Args:
            sample: `(batch, channels, height, width)`; channels beyond those predicted are kept.
            predicted: by the network.
            seen: `(batch, tokens)`.
        """
        call, channels = self.host.call, predicted.shape[1]
        assert call is not None
        noise = Noise.of(self.host.told.scheduler, call.timestep, "sag_scale")
        x, size = sample[:, :channels], sample.shape[-2:]
        x0, epsilon = noise.x0(x, predicted), noise.epsilon(x, predicted)
        grid = grid_of(seen.shape[1], size[0] / size[1])
        mask = functional.interpolate((seen > 1).to(x0).unflatten(1, (1, *grid)), size)
        x0 = x0 + mask * (blurred(x0) - x0)
        return torch.cat([noise.alpha * x0 + noise.sigma * epsilon, sample[:, channels:]], 1)


def blurred(picture: torch.Tensor) -> torch.Tensor:
    """A picture `(batch, channels, height, width)` blurred by `SIGMA`; beyond its borders it is reflected."""
    places = torch.arange(WIDTH) - WIDTH // 2
    weights = torch.exp(-((places / SIGMA) ** 2) / 2)
    weights = (weights / weights.sum()).to(picture)
    channels = picture.shape[1]
    padded = functional.pad(picture, [WIDTH // 2] * 4, mode="reflect")
    down = functional.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(down, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
