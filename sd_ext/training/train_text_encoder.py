"""Train a small CLIP from captions and pictures; its text tower and tokenizer are what a pipeline needs.

    accelerate launch training/train_text_encoder.py --data PICTURES --out RUN

Loss: symmetric cross-entropy over the cosine similarities of a batch (Radford et al. 2021, arXiv 2103.00020, figure 3).
With several processes each compares the pairs of its own batch.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from sd_ext.errors import InputError
from sd_ext.seams.transformers import text_tower
from sd_ext.training.configs import ClipSettings, TextEncoderConfig
from sd_ext.training.data.order import Pass
from sd_ext.training.data.pictures import Pictures, fingerprint, read_pixels
from sd_ext.training.data.report import report
from sd_ext.training.data.unused import unused_files
from sd_ext.training.model.text_encoder import save_text_encoder
from sd_ext.training.model.text_encoders import tokenize
from sd_ext.training.model.tokenizer import save_tokenizer, train_tokenizer
from sd_ext.training.model.trainable import load_part
from sd_ext.training.run.fit import fit
from sd_ext.training.run.task import Task
from sd_ext.training.settings.command import main


def build(settings: ClipSettings, tokenizer: Any, side: int, seed: int) -> Any:
    """Make a new CLIP model.

    Args:
        settings: its layers, widths and heads.
        tokenizer: the tokenizer of the captions.
        side: height and width of the pictures, in pixels.
        seed: seed of its random weights.
    """
    torch.manual_seed(seed)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "max_position_embeddings": settings.tokens,
        "projection_dim": settings.projection,
        **special,
    }
    vision = {
        "hidden_size": settings.vision_width,
        "intermediate_size": 4 * settings.vision_width,
        "num_hidden_layers": settings.vision_layers,
        "num_attention_heads": settings.heads,
        "image_size": side,
        "patch_size": settings.patch,
        "projection_dim": settings.projection,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection, **special))


class ContrastiveLoss(nn.Module):
    """The contrastive loss of a CLIP model.

    Called with pixels (b, 3, h, w) and token ids (b, n), it returns the scalars "loss" and "found": the share of
    captions that are more similar to their own picture than to all others of the batch.

    Args:
        clip: the model.
    """

    def __init__(self, clip: Any):
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        similarity = self.clip(input_ids=tokens, pixel_values=pixels).logits_per_text.float()
        pairs = torch.arange(len(tokens), device=tokens.device)
        loss = (cross_entropy(similarity, pairs) + cross_entropy(similarity.T, pairs)) / 2
        return {"loss": loss, "found": (similarity.argmax(1) == pairs).float().mean()}


class TextEncoderTask(Task):
    """The task of training a text encoder, for `sd_ext.training.run.fit.fit`."""

    name = "text encoder"

    def __init__(self, config: TextEncoderConfig):
        self.config = config
        self.pictures = Pictures(
            config.data.data, config.pictures.resolution, config.data.split, folder_repeats=config.data.folder_repeats
        )
        report(self.pictures, unused_files(config.data.data, config.data.split, self.pictures.items))
        self.sizes = self.pictures.sizes
        self.parts = {"samples": fingerprint(self.pictures, self.pictures.captions)}
        if not any(self.pictures.captions):
            raise InputError(f"{config.data.data} has no captions: give metadata.jsonl a 'text' for each picture")
        if model := config.start.model:
            self.tokenizer = load_part(CLIPTokenizer, model, "tokenizer")
            self.clip = load_part(CLIPModel, model, "clip")
        else:
            self.tokenizer = train_tokenizer(self.pictures.captions, config.clip.vocabulary, config.clip.tokens)
            self.clip = build(config.clip, self.tokenizer, config.pictures.resolution, config.loop.seed)
        if config.memory.gradient_checkpointing:
            self.clip.gradient_checkpointing_enable()
        self.tokens = tokenize(self.tokenizer, self.pictures.captions)
        self.model = ContrastiveLoss(self.clip)

    def read(self, each: Pass) -> Tensor:
        """The pictures of a pass, (b, 3, height, width) in [-1, 1]."""
        return read_pixels(self.pictures, each, self.config.loop.seed, self.config.data.flip)

    def batch(self, each: Pass, read: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The arguments of `ContrastiveLoss.forward`: pictures and token ids."""
        return read.to(device), self.tokens[list(each.samples)].to(device)

    def export(self, new: Path, history: list[dict[str, float]], step: int, last: bool) -> None:
        """Save `text_encoder/` and `tokenizer/` as in a pipeline, and the complete CLIP, for training it further."""
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.clip.eval().save_pretrained(new / "clip")
        save_text_encoder(text_tower(self.clip), new / "text_encoder")
        save_tokenizer(self.tokenizer, new / "tokenizer")


def run(config: TextEncoderConfig) -> Path:
    """Train a text encoder, or resume its training.

    Returns:
        The folder with `text_encoder/` and `tokenizer/`.

    Raises:
        InputError: settings or data that cannot work.
        TrainingError, Interrupted: see `fit`.
    """
    return fit(TextEncoderTask(config), config)


if __name__ == "__main__":
    sys.exit(main(TextEncoderConfig, "sd_ext.training.train_text_encoder:run", __doc__))
