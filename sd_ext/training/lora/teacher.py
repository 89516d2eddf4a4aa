"""The base model as the teacher of its own adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.setting import contradiction


@contextlib.contextmanager
def base_alone(unet: Any) -> Iterator[None]:
    """A context without gradients in which a U-Net's adapters are switched off, so that it is the base model."""
    unet.disable_adapters()
    try:
        with torch.no_grad():
            yield
    finally:
        unet.enable_adapters()


def check_frozen_text(config: LoraConfig, what: str) -> None:
    """Refuse settings under which the base model would not be what teaches.

    Args:
        config: all settings.
        what: what is trained, for the message.

    Raises:
        InputError: text encoders or new words are trained, the base's weights are changed, or adapters drop out.
    """
    adapters = config.adapters
    unable = {
        "text_encoder": config.text.text_encoder,
        "tokens": bool(config.words.tokens),
        f"init = {adapters.init}": adapters.changes_base,
        "dropout": adapters.dropout > 0,
        "class_data": bool(config.prior.class_data),
    }
    if found := [name for name, is_set in unable.items() if is_set]:
        raise contradiction(f"{what} learns from the base model as it is; leave out {', '.join(found)}")
