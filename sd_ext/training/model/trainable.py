"""Which models can be trained further: complete text-to-image models of Stable Diffusion 1.x, 2.x and SDXL."""

from __future__ import annotations

from typing import Any

from sd_ext.errors import ModelError
from sd_ext.model_configs import parts_in
from sd_ext.models import Model, find_model, find_part

ABLE = "Stable Diffusion 1.x, 2.x and SDXL (text to image) can be trained"


def find_trainable(name: str, variant: str = "", revision: str = "") -> Model:
    """Find a model and check that it can be trained further; no weight is loaded.

    Args:
        name: a pipeline folder, a single `.safetensors` file, a Hub id (downloaded now), or "embedded".
        variant: which weight files to use, such as "fp16"; "" for those without a variant in their name.
        revision: the branch, tag or commit on the Hub; "" for the main branch.

    Raises:
        ModelError: there is no such model, or it is of another kind or incomplete; says what can be trained.
    """
    model = find_model(name, variant, revision=revision or None)
    model.check(())
    check_kind(model)
    networks = ("unet", "vae", *model.text_parts)
    model.check((*networks, *model.tokenizers, "scheduler"))
    for part in networks:
        model.check_weights(part)
    _ = model.zeros_for_no_prompt, model.noise()  # reading them raises if they are wrong
    return model


def check_kind(model: Model) -> None:
    """Raise `ModelError` unless a model is a text-to-image model of Stable Diffusion (no inpainting and the like)."""
    if lost := {"unet", "text_encoder", "vae"} - set(model.parts):
        model.check(sorted(lost & set(parts_in(dict(model.index)))))  # says how to give a part that should be there
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
    """Load one part of a pipeline.

    Args:
        cls: the part's class, which has `from_pretrained`.
        name: the folder of the part itself, or of a pipeline or finished run that contains it; or a file.
        part: the part's name, such as "vae".

    Raises:
        ModelError: there is no such part, or it cannot be loaded.
    """
    return find_part(name, part).load_as(cls, part)
