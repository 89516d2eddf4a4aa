"""The text encoders of a pipeline: CLIP's, one (Stable Diffusion 1.x, 2.x, the refiner of XL) or two (XL)."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import InputError
from ..seams.transformers import find_module


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder with its tokenizer.

    Args:
        part: its name in the pipeline, "text_encoder" or "text_encoder_2".
        model: transformers' `CLIPTextModel` or `CLIPTextModelWithProjection`.
        tokenizer: transformers' `CLIPTokenizer`.
    """

    part: str
    model: Any
    tokenizer: Any

    @property
    def rows(self) -> int:
        """How many tokens it reads at once, with begin and end: 77."""
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    @property
    def length(self) -> int:
        """How many tokens a chunk holds: 75."""
        return self.rows - 2

    @property
    def width(self) -> int:
        """The width of a token's vector."""
        return self.model.config.hidden_size

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return self.model.config.num_hidden_layers

    @property
    def comma(self) -> int | None:
        """The token of a comma that stands alone; None if it has none."""
        return comma_of(self.tokenizer)

    @property
    def final_norm(self) -> nn.Module:
        """The layer norm after its last layer."""
        return find_module(dict(self.model.named_modules()), "final_layer_norm")

    def tokens_of(self, text: str) -> list[int]:
        """The tokens of a text, without begin and end, however many they are."""
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def comma_of(tokenizer: Any) -> int | None:
    """A tokenizer's token of a comma that stands alone; None if it has none."""
    number = tokenizer.convert_tokens_to_ids(",</w>")
    return None if number in (None, tokenizer.unk_token_id) else number


def arguments_of(pipe: Any) -> Collection[str]:
    """What a pipeline's call takes, by name; of a Modular pipeline its blocks know that."""
    blocks = getattr(pipe, "blocks", None)
    return inspect.signature(pipe.__call__).parameters if blocks is None else blocks.input_names


def find_encoders(pipe: Any) -> list[TextEncoder]:
    """The text encoders of a pipeline whose U-Net is given what CLIP makes of a prompt.

    Returns:
        One or two; none for every other pipeline.
    """
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet, accepted = getattr(pipe, "unet", None), arguments_of(pipe)
    if unet is None or "prompt_embeds" not in accepted:
        return []
    found = []
    for part, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        if (model := getattr(pipe, part, None)) is not None:
            if not isinstance(model, (CLIPTextModel, CLIPTextModelWithProjection)):
                return []
            found.append(TextEncoder(part, model, getattr(pipe, tokenizer)))
    pooled = found[-1:] and found[-1].part == "text_encoder_2"
    if pooled and ("pooled_prompt_embeds" not in accepted or unet.config.get("addition_embed_type") != "text_time"):
        return []
    width = unet.config.get("cross_attention_dim")
    fits = width == sum(encoder.width for encoder in found)
    return found if fits or width is None or isinstance(width, (list, tuple)) else []


def encoders_of(pipe: Any) -> list[TextEncoder]:
    """As `find_encoders`. Raises `InputError` where there are none."""
    found = find_encoders(pipe)
    if not found:
        raise InputError(f"{type(pipe).__name__} does not read prompts with CLIP alone, as Stable Diffusion does")
    return found
