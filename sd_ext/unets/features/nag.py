"""Normalised attention guidance (NAG, Chen et al. 2025, arXiv 2505.21179): a negative prompt within cross-attention.

It needs no guidance by two predictions, and so works with models of few steps, which have none. In every
cross-attention, z is the result for the prompt and y that for the negative one. Then

    a = z + scale (z - y),  shortened to at most tau times the length of z,  and  alpha a + (1 - alpha) z

takes the place of z. Lengths are the sums of absolute values over a token's channels, all heads together.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ...errors import InputError
from ...seams.diffusers import attention as layers
from ..attention.classes import MemoryEfficientAttnProcessor
from ..attention.processors import is_replaceable
from ..inside import views
from ..inside.branches import halves_in
from ..inside.host import Host
from ..inside.texts import encoded
from .feature import Feature, Inner, Options
from .gate import cross_attentions
from .options import Option


class NormalisedAttention(MemoryEfficientAttnProcessor):
    """Cross-attention that leads away from another text.

    Args:
        negative: its states, `(1, tokens, channels)`.
        first: the first row of the batch that is changed.
        scale, tau, alpha: see the top of this file.
    """

    def __init__(self, negative: torch.Tensor, first: int, scale: float, tau: float, alpha: float):
        self.negative, self.first = negative, first
        self.scale, self.tau, self.alpha = scale, tau, alpha

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The attention's result before the output projection, `(batch, tokens, channels)`."""
        every = super().attend(attn, x, context, mask)
        kept, z = every[: self.first], every[self.first :]
        other = layers.context_of(attn, self.negative).expand(len(z), -1, -1)
        y = super().attend(attn, x[self.first :], other, None)
        away = z + self.scale * (z - y)
        longest = self.tau * z.abs().sum(-1, keepdim=True)
        away = away * (longest / away.abs().sum(-1, keepdim=True).clamp_min(1e-7)).clamp_max(1)
        return torch.cat([kept, self.alpha * away + (1 - self.alpha) * z])


class NormalisedAttentionGuidance(Feature):
    """Leads the conditional half, or with no guidance all rows, away from a negative prompt, in cross-attention.

    The prompt is encoded by the pipeline that calls the network, once in a run. The pipeline's own negative prompt
    is not used. In training mode nothing is changed.

    Options:
        nag_scale: how far it leads; 0 is off. The authors' program calls this plus 1 its scale: 4 here is 5 there.
        nag_prompt: what is avoided; with the empty text, what the pipeline has for no prompt.
        nag_tau: how many times the length of the prompt's own result is the most.
        nag_alpha: the share of the new result in the mixture.
    """

    name = "normalised attention guidance"
    options: ClassVar[dict[str, Option]] = {
        "nag_scale": Option(
            0.0,
            float,
            "how far cross-attention leads from nag_prompt, also without guidance (NAG, arXiv 2505.21179); such as 4",
            lambda value: value >= 0,
            "0 or more",
        ),
        "nag_prompt": Option("", str, "what is avoided, in words"),
        "nag_tau": Option(
            2.5, float, "the most that a result may grow, as a factor", lambda value: value > 0, "above 0"
        ),
        "nag_alpha": Option(
            0.5, float, "share of the new result, the rest is as it was", lambda value: 0 <= value <= 1, "from 0 to 1"
        ),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        return options["nag_scale"] == 0 or options["nag_alpha"] == 0

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        if not cross_attentions(host.network):
            raise InputError("nag_scale must be 0: this model has no cross-attention")

    def forward(
        self, inner: Inner, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Run a view of the network whose cross-attention leads away from the prompt."""
        host, call = self.host, self.host.call
        assert call is not None  # this feature runs where steps are counted
        branches = None if host.training else halves_in(host, sample, "nag_scale")
        if branches is None or host.told.branches == ("unconditional",):
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        names = cross_attentions(call.model)
        self._check(names)
        text = encoded(host, "nag_scale", self.values["nag_prompt"], encoder_hidden_states)
        settings = (self.values[name] for name in ("nag_scale", "nag_tau", "nag_alpha"))
        processor = NormalisedAttention(text.states, len(sample) // 2 * (branches - 1), *settings)
        call.model = views.with_processor(call.model, names, processor)
        return inner(sample, timestep, encoder_hidden_states, **kwargs)

    def _check(self, names: list[str]) -> None:
        """Raise `InputError` where something else is in the places that this feature needs."""
        network = self.host.network
        if views.replaced_around(network, names):
            raise InputError("nag_scale needs a network whose layers are not offloaded one by one; offload it whole")
        own = [name for name in names if not is_replaceable(network.get_submodule(name))]
        if own or network.encoder_hid_proj is not None:
            what = type(network.get_submodule(own[0]).processor).__name__ if own else "a projection of the text"
            raise InputError(f"nag_scale needs cross-attention to the text alone; this model has {what} (IP-Adapter?)")
