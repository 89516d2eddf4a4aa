"""Further texts: what a U-Net is given for prompts that its pipeline was not called with."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from ...errors import InputError
from .host import Host


class Text(NamedTuple):
    """What a prompt is for a U-Net.

    Args:
        states: `(1, tokens, channels)`.
        pooled: of SDXL, `(1, channels)`, else None.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None = None


def encoded(host: Host, option: str, prompt: str, like: torch.Tensor) -> Text:
    """Encode a prompt by the pipeline that calls the model, once in a run.

    Args:
        host: the model, which is executing a call.
        option: the option that needs it, for messages.
        prompt: the text; the empty one is what the pipeline has for no prompt; in SDXL that is zeros.
        like: the text states of the call, `(batch, tokens, channels)`, for dtype and device.

    Raises:
        InputError: nobody has said what the prompt is for this model.
    """
    known: dict[str, Text] = host.memory.setdefault("texts", {})
    if prompt in host.told.texts:
        text = Text(host.told.texts[prompt].to(like))
    else:
        text = known[prompt] if prompt in known else _asked(host, option, prompt, like)
        known[prompt] = text
    if text.states.shape[-1] != like.shape[-1]:
        have = text.states.shape[-1]
        raise InputError(f"{option}: text states for {prompt!r} have {have} channels, not {like.shape[-1]}")
    return text


def _asked(host: Host, option: str, prompt: str, like: torch.Tensor) -> Text:
    """Ask the pipeline; for arguments and errors see `encoded`."""
    pipe = host.told.pipe
    if pipe is None:
        raise InputError(
            f"{option} needs the text states of {prompt!r}: call the U-Net by a pipeline of Diffusers, or within "
            f"sd_ext.sampling(unet, ..., texts={{{prompt!r}: states}})"
        )
    return encode(option, pipe, prompt, like)


@torch.no_grad()
def encode(option: str, pipe: Any, prompt: str, like: torch.Tensor) -> Text:
    """Encode a prompt, by `encode_prompt` of Stable Diffusion, which returns two tensors, or of SDXL, with four.

    Args:
        option, prompt, like: see `encoded`.
        pipe: the pipeline.

    Raises:
        InputError: its text encoders have been taken out.
    """
    if not any(getattr(pipe, name, None) is not None for name in ("text_encoder", "text_encoder_2")):
        raise InputError(f"{option} needs the text states of {prompt!r}, and this pipeline has no text encoder now")
    # Modular pipelines have the encoders, and no such method.
    kind = StableDiffusionXLPipeline if hasattr(pipe, "text_encoder_2") else StableDiffusionPipeline
    encode_prompt = getattr(pipe, "encode_prompt", None) or functools.partial(kind.encode_prompt, pipe)
    given, negative, *pooled = encode_prompt(
        prompt=prompt,
        device=like.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=not prompt,
        clip_skip=getattr(pipe, "clip_skip", None),
    )
    found = (given, *pooled[:1]) if prompt else (negative, *pooled[1:])
    return Text(*(each.to(like) for each in found))  # type: ignore[union-attr]
