"""Text encoders, and the text conditions of the U-Net that Diffusers' pipelines compute with them.

SD 1.x, 2.x     "states" (b, n, d): the text encoder's last hidden state; with clip skip N, its Nth layer from the end
SDXL            "states" (b, n, d): the last but one hidden states of both encoders, concatenated along d;
                "pooled" (b, p): the pooled output of the second (Podell et al. 2023, arXiv 2307.01952, section 2.1)

b captions, n tokens each. Longer captions are read in chunks, see `chunked`: n is then that of all chunks, and "pooled"
is of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.models import Model
from sd_ext.seams.transformers import find_module
from sd_ext.training.model import chunked


class TextTowers(nn.Module):
    """The text encoders of a pipeline (one or two "towers") and their tokenizers.

    Called with token ids (b, towers, n), it returns "states" (b, n, d) and for SDXL "pooled" (b, p).

    Args:
        tokenizers: one for each encoder.
        encoders: the text encoders.
        names: their part names in the pipeline, such as "text_encoder_2".
        clip_skip: which layer of a single encoder is read, from the end, through its last norm; 1 is the last.
        chunks: in how many chunks texts are read.

    Attributes:
        words: of each tokenizer, which of its entries are new words.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        encoders: Sequence[nn.Module],
        names: Sequence[str],
        clip_skip: int = 1,
        chunks: int = 1,
    ):
        super().__init__()
        self.clip_skip, self.chunks = clip_skip, chunks
        self.words = [chunked.NewWords()] * len(tokenizers)
        self.tokenizers, self.names = list(tokenizers), list(names)
        self.encoders = nn.ModuleDict(dict(zip(names, encoders, strict=True)))

    @classmethod
    def load(cls, files: Model, dtype: torch.dtype = torch.float32, clip_skip: int = 1, chunks: int = 1) -> TextTowers:
        """Load the frozen text encoders and tokenizers of a model, the encoders in number format `dtype`."""
        tokenizers = [files.load(part.replace("text_encoder", "tokenizer")) for part in files.text_parts]
        encoders = [files.load(part, dtype).eval().requires_grad_(False) for part in files.text_parts]
        return cls(tokenizers, encoders, files.text_parts, clip_skip, chunks)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """The token ids of texts, (b, towers, n); texts that are too long are cut off."""
        if self.chunks == 1:
            return torch.stack([tokenize(each, list(texts)) for each in self.tokenizers], dim=1)
        made = zip(self.tokenizers, self.words, strict=True)
        return torch.stack([chunked.tokenize(each, texts, self.chunks, words) for each, words in made], dim=1)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Token ids (b, towers, n) -> "states" (b, n, d), and for SDXL "pooled" (b, p)."""
        count, _, n = tokens.shape
        rows = tokens.movedim(1, 0).reshape(len(self.encoders), count * self.chunks, n // self.chunks)
        if len(self.encoders) == 1:
            (encoder,) = self.encoders.values()
            if self.clip_skip > 1:
                layer = encoder(rows[0], output_hidden_states=True).hidden_states[-self.clip_skip]
                states = find_module(dict(encoder.named_modules()), "final_layer_norm")(layer)
            else:
                states = encoder(rows[0]).last_hidden_state
            return {"states": states.reshape(count, n, -1)}
        outputs = [e(rows[i], output_hidden_states=True) for i, e in enumerate(self.encoders.values())]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"states": states.reshape(count, n, -1), "pooled": outputs[-1].text_embeds[:: self.chunks]}


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """The token ids of captions, padded and truncated as in Diffusers' pipelines: (captions, model_max_length)."""
    return tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def unet_arguments(conditions: dict[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments of `UNet2DConditionModel.forward` for text conditions.

    Args:
        conditions: "states" (b, n, d), and for SDXL "pooled" (b, p) and "time_ids" (b, 6).
    """
    arguments: dict[str, Any] = {"encoder_hidden_states": conditions["states"]}
    if "pooled" in conditions:
        arguments["added_cond_kwargs"] = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]}
    return arguments
