"""Perturbed-attention guidance (PAG, Ahn et al. 2024, arXiv 2403.17377) and smoothed-energy guidance (SEG, Hong 2024,
arXiv 2408.00760), built into the network, so that they work in every pipeline.

Both move the prediction away from that of a network whose self-attention is degraded in some layers: the attention map
is replaced by the identity (PAG, equation 15), or the queries are blurred over the picture (SEG, equation 12):

    guided + scale (conditional - perturbed)

The network adds the same difference d to every branch of the batch. Classifier-free guidance of any weight w then
leaves it unchanged: (u + d) + w ((c + d) - (u + d)) = u + w (c - u) + d.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ...errors import InputError
from ...seams.diffusers.attention import attention_layers, is_cross
from ..attention.processors import MemoryEfficientAttnProcessor
from ..inside import views
from ..inside.blur import blur
from ..inside.branches import conditional_half, say_unsure
from ..inside.hooks import OfThread
from ..inside.host import Host
from ..inside.say import say
from ..inside.told import CONDITIONAL
from .feature import Feature, Inner, Options
from .options import Option, interval

TRAINED_STEPS = 1000  # timesteps that models of this architecture are trained on


class PerturbedGuidance(Feature):
    """Adds a further call of the network, for the conditional samples, for each of the two guidances that is on.

    Classifier-free guidance may be off, or in one batch, which the pipeline says (see `inside/told.py`). If a
    pipeline calls the network separately for each prompt, each prediction is moved away from its own perturbed one. In
    training mode nothing is added. The perturbed network is a view, so other threads may run the model meanwhile.
    A pipeline with `guidance_rescale` measures the standard deviation after this
    guidance.

    Options:
        pag_scale, seg_scale: factors of the differences; 0 is off, the papers use 3.
        pag_layers, seg_layers: where self-attention is perturbed: names of layers, or of blocks that contain them, such
            as "mid", "up_blocks.0" or "down_blocks.2.attentions.1".
        pag_interval, seg_interval: [start, stop) as fractions of the run's steps or, if the number of steps is not
            known, of the trained timesteps, from noise to picture.
        seg_sigma: the blur's standard deviation in tokens; None is infinite: every query becomes the mean of all.
    """

    name: ClassVar[str] = "perturbed guidance"
    before_steps: ClassVar[bool] = True
    options: ClassVar[dict[str, Option]] = {
        "pag_scale": Option(0.0, float, "perturbed-attention guidance (arXiv 2403.17377); the paper uses 3"),
        "pag_layers": Option(["mid"], list[str], 'blocks or layers that are perturbed, such as "mid" or "up_blocks.0"'),
        "pag_interval": interval("perturbed-attention guidance"),
        "seg_scale": Option(0.0, float, "smoothed-energy guidance (arXiv 2408.00760); the paper uses 3"),
        "seg_layers": Option(["mid"], list[str], "blocks or layers whose queries are blurred"),
        "seg_interval": interval("smoothed-energy guidance"),
        "seg_sigma": Option(
            10.0,
            float | None,
            "the blur's standard deviation in tokens; None is infinite",
            lambda value: value is None or value > 0,
            "above 0, or None for the mean of all",
        ),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        """Whether both scales are 0; the other options alone have no effect."""
        return options["pag_scale"] == options["seg_scale"] == 0

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.sigma = options["seg_sigma"]
        self.kinds = tuple(
            _Kind(
                kind,
                options[f"{kind}_scale"],
                tuple(find_self_attention(host.network, f"{kind}_layers", options[f"{kind}_layers"])),
                tuple(options[f"{kind}_interval"]),
            )
            for kind in ("pag", "seg")
            if options[f"{kind}_scale"]
        )
        self.now = _Now()

    def needs(self) -> Mapping[tuple[str, str], str]:
        """The blur needs the whole grid."""
        blurred = [kind.layers for kind in self.kinds if kind.name == "seg"]
        return {("grid of tokens", name): "seg_layers" for names in blurred for name in names}

    def forward(
        self,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The prediction with scale (conditional - perturbed) added to each branch."""
        if self.host.training:
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": encoder_hidden_states, **kwargs}
        output = inner(**_own_lists(inputs))
        kinds = self._kinds_now()
        branches = self._branches(sample) if kinds else None
        if branches is None:
            return output
        if branches == 2:
            inputs = conditional_half(inputs, len(sample))
        conditional = output.chunk(branches)[-1]
        push, told = torch.zeros_like(conditional), replace(self.host.told, branches=CONDITIONAL)
        for kind in kinds:
            self.now.kind = kind.name
            try:
                with (
                    self.host.telling(told),
                    views.processed(self.host, kind.layers, self._perturbation(kind.name, sample)),
                ):
                    push += kind.scale * (conditional - inner(**_own_lists(inputs)))
            finally:
                self.now.kind = None
        return output + torch.cat([push] * branches)

    def reuse_key(self) -> Hashable:
        """Which guidances are on, and which perturbation is being computed: each has features of its own.

        When a guidance begins or ends, all calls of the step run the whole network, since their difference makes sense
        only for features of the same step.
        """
        return tuple(kind.name for kind in self._kinds_now()), self.now.kind

    def _kinds_now(self) -> list[_Kind]:
        """The guidances that are on at this step."""
        call = self.host.call
        if call is None:
            return []
        share = call.step / call.total if call.total else 1 - (call.timestep + 1) / TRAINED_STEPS
        return [kind for kind in self.kinds if kind.interval[0] <= share < kind.interval[1]]

    def _branches(self, sample: torch.Tensor) -> int | None:
        """How many branches the batch has: 2 for [unconditional, conditional], else 1; None if it is not supported."""
        told, call = self.host.told, self.host.call
        if not told.sure and call is not None and call.step == 0:
            say_unsure(self.host, sample)
        if told.guided or len(told.branches) == 1:
            return len(told.branches)
        say(
            logging.WARNING,
            f"perturbed guidance knows no batches of {', '.join(told.branches)}, and adds nothing",
        )
        return None

    def _perturbation(self, kind: str, sample: torch.Tensor) -> MemoryEfficientAttnProcessor:
        if kind == "pag":
            return IdentityAttention()
        height, width = sample.shape[-2:]
        return BlurredQueries(self.sigma, height / width)


@dataclass(frozen=True)
class _Kind:
    """A guidance that is on: its name, the factor of its difference, the names of its layers, and its interval."""

    name: str
    scale: float
    layers: tuple[str, ...]
    interval: tuple[float, float]


class _Now(OfThread):
    """Which perturbation a thread is computing; None if none."""

    kind: str | None = None


class IdentityAttention(MemoryEfficientAttnProcessor):
    """Self-attention in which every token attends only to itself, so that the result is the values."""

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The values of all tokens, `(batch, tokens, channels)`, even where keys and values are thinned out."""
        return attn.to_v(x)


class BlurredQueries(MemoryEfficientAttnProcessor):
    """Self-attention with queries blurred over the picture, which blurs the attention map's rows (SEG, section 4.2).

    Args:
        sigma: standard deviation of the Gaussian in tokens; None is infinite.
        aspect: height / width of the latents.
    """

    def __init__(self, sigma: float | None = None, aspect: float = 1.0):
        self.sigma, self.aspect = sigma, aspect

    def query(self, attn: Any, x: torch.Tensor) -> torch.Tensor:
        """The blurred queries, `(batch, tokens, channels)`."""
        return blur(attn.to_q(x), self.sigma, self.aspect)


def find_self_attention(unet: torch.nn.Module, option: str, names: Sequence[str]) -> dict[str, Any]:
    """Find self-attention layers by name.

    Args:
        unet: the model.
        option: the option that the names are from, for messages.
        names: names of layers, or of blocks that contain them; "mid", "down" and "up" are short for "mid_block",
            "down_blocks" and "up_blocks".

    Returns:
        The layers by name.

    Raises:
        InputError: the list is empty, or the model has no self-attention under one of the names.
    """
    layers = {n: layer for n, layer in attention_layers(unet).items() if not is_cross(layer)}
    if not names:
        raise InputError(f"{option} must be a list of names such as 'mid' or 'up_blocks.0', got {names!r}")
    found: dict[str, Any] = {}
    for name in names:
        prefix = SHORT.get(name, name)
        under = {n: m for n, m in layers.items() if f"{n}.".startswith(f"{prefix}.")}
        if not under:
            blocks = sorted({n.split(".attentions")[0] for n in layers})
            raise InputError(
                f"{option}: this model has no self-attention in {name!r}; it has some in {', '.join(blocks)}"
            )
        found.update(under)
    return found


SHORT = {"mid": "mid_block", "down": "down_blocks", "up": "up_blocks"}


def _own_lists(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with all lists copied, for one call: Diffusers removes items from the lists that it gets."""
    return {key: list(value) if isinstance(value, list) else value for key, value in inputs.items()}
