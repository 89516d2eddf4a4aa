"""What trainers write into the header of a LoRA file about its pictures and its training (`ss_*`, `modelspec.*`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..reading import parse_json

LONGEST = 200
TRAINING = {
    "ss_sd_model_name": "trained on",
    "ss_base_model_version": "base version",
    "ss_num_train_images": "pictures",
    "ss_resolution": "resolution",
    "ss_steps": "steps",
    "ss_epoch": "epoch",
    "ss_batch_size_per_device": "batch size",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "of the U-Net",
    "ss_text_encoder_lr": "of the text encoder",
    "ss_lr_scheduler": "schedule",
    "ss_optimizer": "optimizer",
    "ss_clip_skip": "clip skip",
    "ss_noise_offset": "noise offset",
    "ss_min_snr_gamma": "min SNR",
    "ss_zero_terminal_snr": "zero SNR",
    "ss_seed": "seed",
    "ss_network_module": "network",
    "ss_network_args": "its options",
    "modelspec.prediction_type": "prediction",
    "modelspec.author": "author",
    "modelspec.license": "license",
    "modelspec.merged_from": "merged from",
    "modelspec.description": "description",
}
"""Entry of the header -> what it is called here."""
EMPTY = "", "None", "none", "{}"


def training_of(header: Mapping[str, str]) -> dict[str, str]:
    """The settings of a LoRA's training, by the names in `TRAINING`."""
    given = {name: header.get(entry, "").strip() for entry, name in TRAINING.items()}
    return {
        name: text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
        for name, text in given.items()
        if text not in EMPTY
    }


def trigger_of(header: Mapping[str, str]) -> str:
    """The words that a LoRA is called by, as its maker says."""
    return header.get("modelspec.trigger_phrase", "").strip()


def tags_of(header: Mapping[str, str]) -> dict[str, int]:
    """The tags of a LoRA's training pictures: tag -> how often, the most frequent first."""
    found: Counter[str] = Counter()
    if text := header.get("ss_tag_frequency"):
        try:
            folders = parse_json(text, "ss_tag_frequency in the header", dict[str, Any])
        except InputError:  # of no use, and nothing that depends on it
            folders = {}
        for tags in folders.values():
            if isinstance(tags, dict):
                found.update({tag.strip(): n for tag, n in tags.items() if isinstance(n, int) and n > 0})
    found.update({tag.strip(): 0 for tag in header.get("modelspec.tags", "").split(",") if tag.strip()})
    return {tag: max(1, count) for tag, count in sorted(found.items(), key=lambda each: (-each[1], each[0]))}
