"""Perturbed-attention guidance (PAG, Ahn et al. 2024, arXiv 2403.17377) and smoothed-energy guidance (SEG, Hong 2024,
arXiv 2408.00760), inside the network, so that every pipeline has them.

Both push the prediction away from that of a network whose self-attention is spoiled in some layers: by the identity in
place of the attention map (PAG, equation 15), or by queries blurred over the picture (SEG, equation 12):

    guided + scale (conditional - perturbed)

The network adds the difference to every branch of the batch. Then it passes classifier-free guidance of any weight w
unchanged: (u + d) + w ((c + d) - (u + d)) = u + w (c - u) + d.
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

TRAINED_STEPS = 1000  # of every model of this architecture in use


class PerturbedGuidance(Feature):
    """One more call of the network, on the conditional samples, for each of the two guidances that is on.

    Guidance may come batched, recognised by equal latents in both halves, or be off. A pipeline that calls the network
    once per prompt gets each of its predictions guided away from its own perturbed one. While training nothing is
    added. A pipeline with `guidance_rescale` takes the standard deviation after this guidance.

    Options:
        pag_scale, seg_scale: weights of the differences, 0 is off; the papers use 3.
        pag_layers, seg_layers: whose self-attention is perturbed: names of layers or of blocks that hold them, such as
            "mid", "up_blocks.0" or "down_blocks.2.attentions.1".
        pag_interval, seg_interval: [start, stop) as shares of the run's steps, or where the number of steps is not
            known, of the trained timesteps, from the noise to the picture.
        seg_sigma: the blur's standard deviation in tokens; None is infinite, the mean of all queries.
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
        """Layers and intervals alone change nothing."""
        return options["pag_scale"] == options["seg_scale"] == 0

    def validate(self, unet: Host, options: Options) -> None:
        """Finite scales, layers this model has, an interval within [0, 1], a blur of some width."""
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
        with unet.lock:  # layers are perturbed for every thread that calls this model
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
        """Features of a perturbed network serve no other, though either may be a step's second call.

        Where a guidance begins or ends all of a step's calls run whole: a difference is between features of one age.
        """
        return tuple(kind for kind, scale in self._scales(unet).items() if scale), unet.memory.get(self._key)

    @property
    def _key(self) -> str:
        return f"{self.name}: in progress"

    def _scales(self, unet: Host) -> dict[str, float]:
        """By kind, "pag" and "seg", the weight that its difference has at this step; 0 where it is off."""
        call = unet.call
        if call is None:
            return {}
        share = call.step / call.total if call.total else 1 - (call.timestep + 1) / TRAINED_STEPS
        on = {kind: unet.config[f"{kind}_interval"] for kind in ("pag", "seg")}
        return {kind: unet.config[f"{kind}_scale"] * (a <= share < b) for kind, (a, b) in on.items()}

    def _branches(self, unet: Host, sample: torch.Tensor) -> int | None:
        """2 for [unconditional, conditional], 1 without; None if it is something else again.

        Found in the first two steps: pictures without guidance may begin from the same noise, but do not go on so.
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
    """Self-attention in which every token sees itself only: the values are the result."""

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, tokens, channels)` before the output projection; of all tokens, also where keys are thinned."""
        return attn.to_v(x)


class BlurredQueries(MemoryEfficientAttnProcessor):
    """Self-attention with queries blurred over the picture, which blurs the attention map's rows (SEG, section 4.2).

    Args:
        sigma: of the Gaussian, in tokens; None is infinite.
        aspect: height / width of the latents.
    """

    def __init__(self, sigma: float | None = None, aspect: float = 1.0):
        self.sigma, self.aspect = sigma, aspect

    def query(self, attn: Any, x: torch.Tensor) -> torch.Tensor:
        """`(batch, tokens, channels)`."""
        return blur(attn.to_q(x), self.sigma, self.aspect)


def perturbed(layers: Sequence[Any], processor: MemoryEfficientAttnProcessor) -> AbstractContextManager[None]:
    """Within, the layers are computed by `processor`, which carries no weights; afterwards by their own again.

    Their own stays registered where it is a module with weights, such as an IP-Adapter's.
    """
    return shadowed(layers, "processor", processor)


def find_self_attention(unet: torch.nn.Module, option: str, names: Any) -> list[Any]:
    """The self-attention layers in the parts of the model named.

    Args:
        unet: the model.
        option: where the names are from, for messages.
        names: of layers, or of blocks that hold them; "mid", "down" and "up" are short for "mid_block", ...

    Raises:
        InputError: not a list of names, or a name under which this model has no self-attention.
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
    """The same arguments for one call: Diffusers takes residuals out of the list it is given."""
    return {key: list(value) if isinstance(value, list) else value for key, value in inputs.items()}


def _check_whole_grid(unet: torch.nn.Module, options: Options, layers: Sequence[Any]) -> None:
    """Raise `InputError` where tokens are merged or tiled in these layers: the blur needs the picture's own grid."""
    reduced = {level for level, how in tokens.plan(unet, options).items() if how.ratio or how.tile}
    for level, transformer in levels.transformers(unet):
        if level in reduced and any(module in layers for module in transformer.modules()):
            raise InputError(f"seg_layers holds layers at level {level}, where tokens are merged or tiled: choose one")


def _check_interval(name: str, value: Any) -> None:
    if not 0 <= value[0] < value[1] <= 1:
        raise InputError(f"{name} must be [start, stop] with 0 <= start < stop <= 1, got {value!r}")
