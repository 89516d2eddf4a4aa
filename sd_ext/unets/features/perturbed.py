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
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch

from ...errors import InputError
from ...seams.diffusers.attention import attention_layers, is_cross
from ...seams.torch import shadowed
from ..attention.processors import MemoryEfficientAttnProcessor
from ..inside import levels
from ..inside.blur import blur
from ..inside.branches import conditional_half, count_branches
from ..inside.host import Host
from ..inside.say import say
from . import tokens
from .feature import Feature, Inner, Options

TRAINED_STEPS = 1000  # timesteps that models of this architecture are trained on


class PerturbedGuidance(Feature):
    """Adds a further call of the network, for the conditional samples, for each of the two guidances that is on.

    Classifier-free guidance may be off, or in one batch, which is recognised by equal latents in both halves. If a
    pipeline calls the network separately for each prompt, each prediction is moved away from its own perturbed one. In
    training mode nothing is added. A pipeline with `guidance_rescale` measures the standard deviation after this
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
    options: ClassVar[dict[str, Any]] = {
        "pag_scale": 0.0,
        "pag_layers": ["mid"],
        "pag_interval": [0.0, 1.0],
        "seg_scale": 0.0,
        "seg_layers": ["mid"],
        "seg_interval": [0.0, 1.0],
        "seg_sigma": 10.0,
    }
    kinds: ClassVar[dict[str, Any]] = {
        "pag_scale": float,
        "pag_layers": list[str],
        "pag_interval": tuple[float, float],
        "seg_scale": float,
        "seg_layers": list[str],
        "seg_interval": tuple[float, float],
        "seg_sigma": float | None,
    }

    def is_neutral(self, options: Options) -> bool:
        """Whether both scales are 0; the other options alone have no effect."""
        return options["pag_scale"] == options["seg_scale"] == 0

    def validate(self, unet: Host, options: Options) -> None:
        """Check that the layers exist in this model, intervals lie within [0, 1], and the blur is positive."""
        for kind in ("pag", "seg"):
            _check_interval(f"{kind}_interval", options[f"{kind}_interval"])
            if options[f"{kind}_scale"]:
                layers = find_self_attention(unet, f"{kind}_layers", options[f"{kind}_layers"])
                if kind == "seg":
                    _check_whole_grid(unet, options, layers)
        sigma = options["seg_sigma"]
        if sigma is not None and sigma <= 0:
            raise InputError(f"seg_sigma must be above 0, or None for the mean of all; got {sigma!r}")

    def forward(
        self,
        unet: Host,
        inner: Inner,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The prediction with scale (conditional - perturbed) added to each branch."""
        if unet.training:
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        inputs = {"sample": sample, "timestep": timestep, "encoder_hidden_states": encoder_hidden_states, **kwargs}
        with unet.lock:  # the perturbation of layers affects every thread that calls this model
            return self._guided(unet, inner, sample, inputs)

    def _guided(self, unet: Host, inner: Inner, sample: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        output = inner(**_own_lists(inputs))
        scales = {kind: scale for kind, scale in self._scales(unet).items() if scale}
        branches = self._branches(unet, sample) if scales else None
        if branches is None:
            return output
        if branches == 2:
            inputs = conditional_half(inputs, len(sample))
        conditional = output.chunk(branches)[-1]
        push = torch.zeros_like(conditional)
        for kind, scale in scales.items():
            layers = find_self_attention(unet, f"{kind}_layers", unet.config[f"{kind}_layers"])
            unet.memory[self._key] = kind
            try:
                with perturbed(layers, self._perturbation(unet, kind, sample)):
                    push += scale * (conditional - inner(**_own_lists(inputs)))
            finally:
                unet.memory.pop(self._key, None)
        return output + torch.cat([push] * branches)

    def reuse_key(self, unet: Host, options: Options) -> Hashable:
        """Which guidances are on, and which perturbation is being computed: each has features of its own.

        When a guidance begins or ends, all calls of the step run the whole network, since their difference makes sense
        only for features of the same step.
        """
        return tuple(kind for kind, scale in self._scales(unet).items() if scale), unet.memory.get(self._key)

    @property
    def _key(self) -> str:
        return f"{self.name}: in progress"

    def _scales(self, unet: Host) -> dict[str, float]:
        """ "pag" and "seg" -> the factor of its difference at this step; 0 if it is off."""
        call = unet.call
        if call is None:
            return {}
        share = call.step / call.total if call.total else 1 - (call.timestep + 1) / TRAINED_STEPS
        on = {kind: unet.config[f"{kind}_interval"] for kind in ("pag", "seg")}
        return {kind: unet.config[f"{kind}_scale"] * (a <= share < b) for kind, (a, b) in on.items()}

    def _branches(self, unet: Host, sample: torch.Tensor) -> int | None:
        """The number of branches in the batch: 2 for [unconditional, conditional], else 1; None if it is not supported.

        Determined in the first two steps, since pictures without guidance may start from equal noise but then diverge.
        """
        key = f"{self.name}: branches of {len(sample)}"
        if key not in unet.memory or unet.call is None or unet.call.step < 2:
            unet.memory[key] = count_branches(sample, unet.config["out_channels"])
        if unet.memory[key] > 2:
            say(logging.WARNING, "perturbed guidance knows no pipelines of three branches, and adds nothing")
            return None
        return unet.memory[key]

    def _perturbation(self, unet: Host, kind: str, sample: torch.Tensor) -> MemoryEfficientAttnProcessor:
        if kind == "pag":
            return IdentityAttention()
        height, width = sample.shape[-2:]
        return BlurredQueries(unet.config["seg_sigma"], height / width)


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


def perturbed(layers: Sequence[Any], processor: MemoryEfficientAttnProcessor) -> AbstractContextManager[None]:
    """Context manager: within the block, these layers use `processor`, and afterwards their own processors again.

    A layer's own processor stays registered if it is a module with weights, such as an IP-Adapter's.

    Args:
        layers: attention layers.
        processor: a processor without weights.
    """
    return shadowed(layers, "processor", processor)


def find_self_attention(unet: torch.nn.Module, option: str, names: Any) -> list[Any]:
    """Find self-attention layers by name.

    Args:
        unet: the model.
        option: the option that the names are from, for messages.
        names: names of layers, or of blocks that contain them; "mid", "down" and "up" are short for "mid_block",
            "down_blocks" and "up_blocks".

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
    return list(found.values())


SHORT = {"mid": "mid_block", "down": "down_blocks", "up": "up_blocks"}


def _own_lists(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with all lists copied, for one call: Diffusers removes items from the lists that it gets."""
    return {key: list(value) if isinstance(value, list) else value for key, value in inputs.items()}


def _check_whole_grid(unet: torch.nn.Module, options: Options, layers: Sequence[Any]) -> None:
    """Raise `InputError` if tokens are merged or tiled in these layers: the blur needs the whole grid."""
    reduced = {level for level, how in tokens.plan(unet, options).items() if how.ratio or how.tile}
    for level, transformer in levels.transformers(unet):
        if level in reduced and any(module in layers for module in transformer.modules()):
            raise InputError(f"seg_layers holds layers at level {level}, where tokens are merged or tiled: choose one")


def _check_interval(name: str, value: Any) -> None:
    if not 0 <= value[0] < value[1] <= 1:
        raise InputError(f"{name} must be [start, stop] with 0 <= start < stop <= 1, got {value!r}")
