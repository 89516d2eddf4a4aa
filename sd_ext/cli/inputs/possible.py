"""What a model cannot do with the pictures and networks of a recipe, told from its configs before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError, ModelError
from ...models import Model, OnHub, find_model, find_part, is_hub_id
from ..request import Recipe

FAMILIES = "StableDiffusion", "StableDiffusionXL"
WORDS = tuple(f"{family}{kind}Pipeline" for family in FAMILIES for kind in ("", "Img2Img", "Inpaint"))
"""Classes whose models draw from words, pictures and masks, whichever of them a folder was saved as."""
INSTRUCTED = tuple(f"{family}InstructPix2PixPipeline" for family in FAMILIES)
REFINER = "StableDiffusionXLImg2ImgPipeline"
MASKED, EDITED = 5, 4  # channels that U-Nets for inpainting and for instructions take beside the latent
CHANNELS = ("in_channels", "out_channels")


def check_possible(recipe: Recipe, model: Model) -> None:
    """Raise `InputError` for a combination that this model cannot do. A model on the Hub is judged once it is here.

    Args:
        recipe: what is wanted.
        model: the recipe's model, found and checked.
    """
    if recipe.refiner is not None:
        _check_refiner(recipe.refiner)
    for control in recipe.controls:
        check_control(control.network, None if isinstance(model, OnHub) else model)
    if isinstance(model, OnHub):
        return
    channels = [model.setting("unet", name, int, 4) for name in CHANNELS if "unet" in model.parts] or [4, 4]
    check_kind(recipe, model.name, model.pipeline_class, channels[0] - channels[1])
    if recipe.refiner is not None and model.family != "sdxl":
        raise InputError(f"--refiner is for Stable Diffusion XL, which {model.name} is not; leave it out")


def check_kind(recipe: Recipe, name: str, pipeline: str, beside: int) -> None:
    """Raise `InputError` unless a kind of model can draw with a recipe's pictures.

    Args:
        recipe: what is wanted.
        name: the model's, for messages.
        pipeline: the name of its pipeline class.
        beside: channels that its U-Net takes beside the latent.
    """
    asked = [flag for flag, value in (("--image", recipe.image), ("--control", recipe.control)) if value]
    asked += ["--upscale"] if recipe.upscale else []
    if pipeline in INSTRUCTED or beside == EDITED:
        if not recipe.image:
            raise InputError(f"{name} changes a picture as the words say; give it with --image")
        for flag, value in (
            ("--mask", recipe.mask),
            ("--strength", recipe.strength),
            ("--control", recipe.control),
            ("--upscale", recipe.upscale),
            ("--refiner", recipe.refiner),
        ):
            if value:
                raise InputError(f"{flag}: {name} only changes whole pictures as the words say; leave it out")
    elif beside == MASKED:
        if not recipe.mask:
            raise InputError(f"{name} is for inpainting, and draws only within a mask; give --image and --mask")
    elif asked and pipeline not in WORDS:
        raise InputError(f"{asked[0]}: a {pipeline or 'model of an unknown kind'} cannot ({name}); leave it out")


def _check_refiner(name: str) -> None:
    refiner = find_model(name)
    refiner.check()
    if isinstance(refiner, OnHub):
        return
    if refiner.pipeline_class != REFINER or "text_encoder_2" not in refiner.parts:
        raise InputError(f"--refiner {name} is a {refiner.pipeline_class}, not a refiner of Stable Diffusion XL")


def check_control(name: str, model: Model | None) -> None:
    """Raise `InputError` for a folder that holds no ControlNet, or one for another kind of model.

    Args:
        name: a folder; a Hub id is judged once it is here.
        model: what it is to steer, if its configs can be read.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if not is_hub_id(name):
            raise InputError(f"--control {name}: no such folder (a Hub id reads owner/name)")
        return
    if not path.is_dir():
        raise InputError(f"--control {name} is a file; a ControlNet is a folder with a config.json, or on the Hub")
    found = find_part(name, "controlnet")
    config = found.config("controlnet")
    if (kind := config.get("_class_name")) != "ControlNetModel":
        raise InputError(f"--control {name} holds a {kind or 'network of no known class'}, not a ControlNetModel")
    found.check_weights("controlnet")
    if model is not None and "unet" in model.parts:
        check_width(name, config, model.config("unet"))


def check_width(name: str, control: Any, unet: Any) -> None:
    """Raise `ModelError` unless a ControlNet reads texts as wide as the U-Net does."""
    own, its = control.get("cross_attention_dim"), unet.get("cross_attention_dim")
    if own != its:
        raise ModelError(
            f"--control {name} is for another family of models: it reads texts {own} wide, and the U-Net reads {its}"
        )
