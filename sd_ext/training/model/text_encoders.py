"""From words to what the U-Net is conditioned on, as the family's pipeline does it.

SD 1.x, 2.x     states (b, n, d): the text encoder's last hidden state
SDXL            states: the last hidden state but one of both encoders, side by side; pooled (b, p): of the second
                (Podell et al. 2023, arXiv 2307.01952, section 2.1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.models import Model


class TextTowers(nn.Module):
    """The text encoders of a pipeline and their tokenizers.

    Tokens are (b, towers, n) whole numbers; states (b, n, d) and pooled (b, p) as above.
    """

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[nn.Module], names: Sequence[str]):
        super().__init__()
        self.tokenizers, self.names = list(tokenizers), list(names)
        self.encoders = nn.ModuleDict(dict(zip(names, encoders, strict=True)))

    @classmethod
    def load(cls, files: Model, dtype: torch.dtype = torch.float32) -> TextTowers:
        tokenizers = [files.load(part.replace("text_encoder", "tokenizer")) for part in files.text_parts]
        encoders = [files.load(part, dtype).eval().requires_grad_(False) for part in files.text_parts]
        return cls(tokenizers, encoders, files.text_parts)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(b, towers, n); longer texts are cut off."""
        return torch.stack([tokenize(each, list(texts)) for each in self.tokenizers], dim=1)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        if len(self.encoders) == 1:
            (encoder,) = self.encoders.values()
            return {"states": encoder(tokens[:, 0]).last_hidden_state}
        outputs = [e(tokens[:, i], output_hidden_states=True) for i, e in enumerate(self.encoders.values())]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"states": states, "pooled": outputs[-1].text_embeds}


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """(captions, model_max_length) token numbers, as the pipelines make them."""
    return tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def cut_off(tokenizer: Any, captions: Sequence[str]) -> list[str]:
    """The captions that are longer than the encoder reads."""
    lengths = [len(ids) for ids in tokenizer(list(captions)).input_ids] if captions else []
    return [caption for caption, n in zip(captions, lengths, strict=True) if n > tokenizer.model_max_length]


def unet_arguments(conditions: dict[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of `UNet2DConditionModel.forward` for states, and for SDXL pooled states and time ids."""
    arguments: dict[str, Any] = {"encoder_hidden_states": conditions["states"]}
    if "pooled" in conditions:
        arguments["added_cond_kwargs"] = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]}
    return arguments
