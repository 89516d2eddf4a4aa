"""What an attached pipeline tells: how strongly it guides, and whether it is what a calibration was made for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from ...attaching import pipelines_of
from ...seams.peft import acting
from ...seams.torch import uncompiled_path
from .calibration import Provenance

TENSORS, VALUES = 12, 16
"""How many tensors of a network are sampled, and how many values of each."""

APART = 0.05
"""Strengths of a LoRA that differ by no more are the same."""

SAME = 0.004
"""Weights that differ less than this, relative to their size, are the same in another precision: bfloat16 is 0.002 off.
"""


# ---- guidance --------------------------------------------------------------------------------------------------------


def told_guidance(scheduler: Any) -> list[float]:
    """The strengths of guidance that the attached pipelines of a scheduler draw with, each once.

    Pipelines know theirs before they announce a run; one that has not drawn yet says nothing. 1 stands for none.
    """
    told = {strength for pipe in pipelines_of(scheduler) if (strength := guidance_of(pipe)) is not None}
    return sorted(told)


def guidance_of(pipe: Any) -> float | None:
    """A pipeline's strength of guidance, or its guider's; None before it has any."""
    for holder in (pipe, getattr(pipe, "guider", None)):
        with suppress(TypeError, ValueError):  # what is no number, such as None or a list
            value = float(getattr(holder, "guidance_scale", None))  # type: ignore[arg-type]
            if math.isfinite(value):
                return max(value, 1.0)
    return None


def guidance_in(guided: torch.Tensor, free: torch.Tensor, prompted: torch.Tensor) -> float | None:
    """The strength g with which a prediction was guided, of free + g (prompted - free); None where it is no such
    mixture, as with rescaled guidance. It waits for the device.
    """
    u, c, p = (each.cpu().double().flatten() for each in (free, prompted, guided))  # not every device has float64
    by, made = c - u, p - u
    length = float(by @ by)
    if not length > 0:
        return None
    strength = float(made @ by) / length
    apart = float((made - strength * by).norm())
    return strength if apart <= 0.02 * float(made.norm()) else None


# ---- the network -----------------------------------------------------------------------------------------------------


def _weights(
    network: torch.nn.Module, state: Mapping[str, torch.Tensor] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The network's own matrices and kernels that can be read, by names without what wrappers add; where they are
    offloaded, those of a state that was read.
    """
    for name, held in network.named_parameters():
        weight = (state or {}).get(name, held) if held.is_meta else held
        readable = weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta
        if weight.dim() > 1 and readable and ".lora_" not in name:
            yield uncompiled_path(name).replace(".base_layer.", "."), weight.detach()


def _sample(weight: torch.Tensor) -> list[float]:
    """A few values of a weight, evenly spread."""
    flat = weight.reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(VALUES, len(flat)), device=flat.device).long()
    return flat[places].float().tolist()


def sample_of_weights(
    network: torch.nn.Module, state: Mapping[str, torch.Tensor] | None = None
) -> dict[str, list[float]]:
    """A few values of a few of a network's weights, by which it is told from another one: the `model_sample` of a
    calibration's provenance.

    It costs next to nothing, whatever the network's size, and is the same in every precision to rounding.

    Args:
        network: the network.
        state: its weights by name, where it is offloaded.
    """
    weights = dict(_weights(network, state))
    names = sorted(weights)
    count = min(TENSORS, len(names))
    chosen = [names[i * (len(names) - 1) // max(count - 1, 1)] for i in range(count)]
    return {name: _sample(weights[name]) for name in dict.fromkeys(chosen)}


def has_weights(network: torch.nn.Module, sample: Mapping[str, Sequence[float]]) -> bool | None:
    """Whether a sample of weights may be this network's; None where none of them can be read, as with weights that are
    quantised or not in memory.
    """
    shaped = dict(network.named_parameters())
    named = {uncompiled_path(name).replace(".base_layer.", ".") for name in shaped}
    if any(name not in named for name in sample):
        return False
    own = {name: _sample(weight) for name, weight in _weights(network) if name in sample}
    return all(_close(own[name], sample[name]) for name in own) if own else None


def _close(own: Sequence[float], recorded: Sequence[float]) -> bool:
    return len(own) == len(recorded) and math.dist(own, recorded) <= SAME * max(math.hypot(*recorded), 1e-12)


# ---- its LoRAs -------------------------------------------------------------------------------------------------------


def lora_strengths(pipe: Any) -> dict[str, float]:
    """The strength of each LoRA that acts in a pipeline's U-Net, by name: the mean over its layers, as a LoRA can have
    others in other blocks.
    """
    found: dict[str, list[float]] = {}
    for module in pipe.unet.modules():
        for name, strength in acting(module).items():
            found.setdefault(name, []).append(strength)
    means = {name: sum(each) / len(each) for name, each in sorted(found.items())}
    return {name: round(mean, 6) for name, mean in means.items() if abs(mean) > 1e-6}


# ---- what differs ----------------------------------------------------------------------------------------------------


def differences(scheduler: Any, made_for: Provenance) -> list[str]:
    """A sentence for each thing in which the attached pipelines differ from what a calibration was made for."""
    found = []
    for pipe in pipelines_of(scheduler):
        sample = made_for.model_sample
        if sample and has_weights(pipe.unet, sample) is False:
            found.append(
                f"fitted to {made_for.model or 'another model'}, and this U-Net's weights differ, by a LoRA that was "
                "merged or all over: tables lose a part of what they gain there; fit one with sd_ext.calibrate"
            )
        now = getattr(pipe.unet, "describe", lambda: "plain")()
        if made_for.unet not in (None, "plain", now):
            found.append(f"fitted to the U-Net with {made_for.unet}, and this one is {now}: give it the same options")
        now, then = lora_strengths(pipe), made_for.lora or {}
        if new := sorted(now.keys() - then.keys()):
            found.append(f"fitted without the LoRA {', '.join(new)}, which is in use: expect a little more error")
        for name, strength in sorted(then.items()):
            if abs(now.get(name, 0.0) - strength) > APART:
                here = f"acts at {now[name]:g}" if name in now else "does not act"
                found.append(f"fitted with the LoRA {name} at {strength:g}, which {here} here: expect more error")
    return found


def other_size(scheduler: Any, made_for: Provenance, shape: Sequence[int]) -> str:
    """What to say of latents `(batch, channels, height, width)` of another size than a calibration was made for; empty
    where it is the same or not known.
    """
    scales = {pipe.vae_scale_factor for pipe in pipelines_of(scheduler) if hasattr(pipe, "vae_scale_factor")}
    if made_for.size is None or len(scales) != 1 or len(shape) != 4:
        return ""
    scale = scales.pop()
    size = shape[3] * scale, shape[2] * scale
    if size == tuple(made_for.size):
        return ""
    return "fitted at {} x {} pixels and drawing {} x {}: expect a little more error".format(*made_for.size, *size)
