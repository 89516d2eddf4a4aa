"""Which models can be trained further: whole ones of Stable Diffusion 1.x, 2.x and SDXL, for text to image."""

from __future__ import annotations

from typing import Any

from sd_ext.errors import ModelError
from sd_ext.models import Model, find_model, find_part

ABLE = "Stable Diffusion 1.x, 2.x and SDXL (text to image) can be trained"


def find_trainable(name: str, variant: str = "") -> Model:
    """A model to train further.

    Args:
        name: a pipeline folder, a Hub id (downloaded now), or "embedded".
        variant: of the weight files, such as "fp16"; "" for the plain ones.

    Raises:
        ModelError: no such model, one of another kind, or an incomplete one; says what can be trained.
    """
    model = find_model(name, variant)
    model.check(())
    check_kind(model)
    networks = ("unet", "vae", *model.text_parts)
    model.check((*networks, *model.tokenizers, "scheduler"))
    for part in networks:
        model.check_weights(part)
    _ = model.zeros_for_no_prompt, model.noise()  # which say what is wrong with them
    return model


def check_kind(model: Model) -> None:
    """Raise `ModelError` for other models than the base models of Stable Diffusion."""
    if not {"unet", "text_encoder", "vae"} <= set(model.parts):
        kind = model.pipeline_class or "model"
        raise ModelError(f"{model.name} is a {kind} without unet, vae and text_encoder; {ABLE}")
    kind = model.setting("unet", "_class_name", str, "UNet2DConditionModel")
    if kind != "UNet2DConditionModel":
        raise ModelError(f"the U-Net of {model.name} is a {kind}; {ABLE}")
    latent = model.setting("vae", "latent_channels", int, 4)
    takes = model.setting("unet", "in_channels", int, 4)
    if takes != latent:
        raise ModelError(f"the U-Net of {model.name} takes {takes} channels, not the latent's {latent}; {ABLE}")


def load_part(cls: Any, name: str, part: str) -> Any:
    """`cls.from_pretrained` on a model folder, or on the `part` of a pipeline folder or finished run.

    Raises:
        ModelError: nothing there that loads.
    """
    return find_part(name, part).load_as(cls, part)
