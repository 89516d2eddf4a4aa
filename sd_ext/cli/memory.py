"""How much memory drawing takes, told before anything is loaded: weights as they are stored, activations as a run with
tensors without data (PyTorch's fake tensors) would allocate them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import SdExtError
from ..models import Model, OnHub, find_model, find_part, is_hub_id
from .request import Recipe, Resources

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TITLES = {"unet": "U-Net", "vae": "autoencoder", "text_encoder": "text", "text_encoder_2": "text 2"}
TOKENS = 77


def memory_line(recipe: Recipe, model: Model, dtype: str, resources: Resources) -> str:
    """Weights and peak of activations by part, and the most that is needed on the device, in words.

    Args:
        recipe: what is to be drawn; the largest pass counts.
        model: its model. Nothing of it is downloaded.
        dtype: of the loaded weights, such as "float16".
        resources: offloading, batch and slices.
    """
    from ..training.run.memory import gb

    if isinstance(model, OnHub):
        return "not known before the model is downloaded"
    weights = {part: _weights(model, part, dtype) for part in TITLES if part in model.parts}
    beside, unknown = _beside(recipe, dtype)
    try:
        working = activations(recipe, model, dtype, resources)
    except (SdExtError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        listed = _listed(weights | beside, {})
        return f"{listed}; activations cannot be estimated ({type(error).__name__})"
    needed = {part: size + working.get(part, 0) for part, size in (weights | beside).items()}
    if resources.offload == "sequential":
        most, how = max(working.values()), " and the largest layer, offloaded in sequence"
    elif resources.offload == "model":
        most, how = max(needed.values()), " at most, offloaded by part"
    else:
        most, how = sum((weights | beside).values()) + max(working.values()), ""
    left = f"; {', '.join(unknown)} not known before it is downloaded" if unknown else ""
    return f"about {gb(most)}{how} (weights + peak: {_listed(weights | beside, working)}){left}"


def _listed(weights: dict[str, int], working: dict[str, int]) -> str:
    from ..training.run.memory import gb

    each = ((TITLES.get(part, part), gb(size), working.get(part)) for part, size in weights.items())
    return ", ".join(f"{title} {size}{f' + {gb(peak)}' if peak is not None else ''}" for title, size, peak in each)


def _weights(model: Model, part: str, dtype: str) -> int:
    return sum(math.prod(stored.shape) for stored in model.tensors(part).values()) * BYTES[dtype]


def _beside(recipe: Recipe, dtype: str) -> tuple[dict[str, int], list[str]]:
    """Weights of ControlNets and of the refiner, and the names of those that are not here yet."""
    found: dict[str, int] = {}
    unknown = []
    for name in dict.fromkeys(control.network for control in recipe.controls):
        if Path(name).expanduser().is_dir():
            found[f"ControlNet {Path(name).name}"] = _weights(find_part(name, "controlnet"), "controlnet", dtype)
        elif is_hub_id(name):
            unknown.append(f"ControlNet {name}")
    if recipe.refiner is not None:
        refiner = find_model(recipe.refiner)
        if isinstance(refiner, OnHub):
            unknown.append(f"refiner {recipe.refiner}")
        else:
            found["refiner"] = sum(_weights(refiner, part, dtype) for part in TITLES if part in refiner.parts)
    return found, unknown


def activations(recipe: Recipe, model: Model, dtype: str, resources: Resources) -> dict[str, int]:
    """Part -> peak of its activations in bytes, for the U-Net and the autoencoder.

    Args:
        recipe, model, dtype, resources: see `memory_line`. A size that is not set is the one the model was trained on.
    """
    import torch

    from ..seams.torch import fake_tensors
    from ..training.run.memory import make_fake, peak_bytes

    with torch.device("meta"):
        unet, vae = (model.without_weights(part).eval() for part in ("unet", "vae"))
    upcast = dtype == "float16" and getattr(vae.config, "force_upcast", False) and model.family == "sdxl"
    scale = model.pixels_per_latent
    side = unet.config.sample_size
    width, height = (
        (each // scale for each in recipe.final_sides) if recipe.size else [round(side * (recipe.upscale or 1))] * 2
    )
    rows = resources.batch * (1 if recipe.guidance is not None and recipe.guidance <= 1 else 2)
    decoded = 1 if resources.vae_slicing else resources.batch
    peaks: dict[str, int] = {}
    with torch.no_grad(), fake_tensors(), torch.device("cpu"):
        make_fake(unet.requires_grad_(False), getattr(torch, dtype))
        make_fake(vae.requires_grad_(False), torch.float32 if upcast else getattr(torch, dtype))
        if recipe.vae_tiling:
            vae.enable_tiling()
        sample = torch.empty(rows, unet.config.in_channels, height, width, dtype=unet.dtype)
        peaks["unet"] = peak_bytes([unet], lambda: unet(sample, torch.tensor(1), **_seen(unet, rows)))
        latents = torch.empty(decoded, vae.config.latent_channels, height, width, dtype=vae.dtype)
        peaks["vae"] = peak_bytes([vae], lambda: vae.decode(latents))
    return peaks


def _seen(unet: Any, rows: int) -> dict[str, Any]:
    """What a U-Net is given beside latents and timestep, without data."""
    import torch

    config = unet.config
    words = config.cross_attention_dim
    words = words if isinstance(words, int) else max(words)
    given: dict[str, Any] = {"encoder_hidden_states": torch.empty(rows, TOKENS, words, dtype=unet.dtype)}
    if config.addition_embed_type == "text_time":
        numbers = 5 if config.projection_class_embeddings_input_dim == 5 * config.addition_time_embed_dim + 1280 else 6
        pooled = config.projection_class_embeddings_input_dim - numbers * config.addition_time_embed_dim
        added = {"text_embeds": (rows, pooled), "time_ids": (rows, numbers)}
        given["added_cond_kwargs"] = {name: torch.empty(*shape, dtype=unet.dtype) for name, shape in added.items()}
    return given
