"""Builds ordinary Diffusers pipelines from trained parts, and saves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sd_ext import whole
from sd_ext.models import Model
from sd_ext.reading import read_json
from sd_ext.training.model.text_encoder import save_text_encoder
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.tokenizer import save_tokenizer


def make_scheduler(settings: dict[str, Any]) -> Any:
    """The sampler of a new pipeline: DPM-Solver++ 2M that starts at the last timestep (trailing spacing).

    It is Diffusers' own class, so that the pipeline loads where this package is not installed.

    Args:
        settings: the noise schedule: keyword arguments of Diffusers' schedulers.
    """
    from diffusers import DPMSolverMultistepScheduler

    # steps_offset has no effect on trailing timesteps; pipelines warn of any other value.
    return DPMSolverMultistepScheduler(**settings, timestep_spacing="trailing", steps_offset=1)


def make_pipeline(vae: Any, unet: Any, noise: dict[str, Any], towers: TextTowers | None, files: Model) -> Any:
    """A StableDiffusionPipeline without safety checker, or a StableDiffusionXLPipeline.

    Args:
        vae: the autoencoder.
        unet: the U-Net.
        noise: the noise schedule: keyword arguments of Diffusers' schedulers.
        towers: text encoders and tokenizers; None for a pipeline that takes prompt embeddings only.
        files: the base model; its family decides the pipeline's class, and SDXL's treatment of empty prompts is kept.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # slow to import, for previews only

    names = ("", "_2")[: 2 if files.family == "sdxl" else 1]
    encoders = list(towers.encoders.values()) if towers else [None] * len(names)
    tokenizers = towers.tokenizers if towers else [None] * len(names)
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "scheduler": make_scheduler(noise)}
    for name, encoder, tokenizer in zip(names, encoders, tokenizers, strict=True):
        parts |= {f"text_encoder{name}": encoder, f"tokenizer{name}": tokenizer}
    if files.family == "sdxl":
        zeros = files.zeros_for_no_prompt
        pipe: Any = StableDiffusionXLPipeline(
            **parts, add_watermarker=False, force_zeros_for_empty_prompt=zeros
        )  # fmt: skip
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_pipeline(
    pipe: Any, folder: Path, dtype: torch.dtype | None = None, add: Callable[[Path], None] = lambda new: None
) -> Path:
    """Save a pipeline as a folder that appears when it is complete; a folder that is there is replaced.

    Args:
        pipe: the pipeline.
        folder: the folder to write.
        dtype: number format of the weights; None to keep theirs.
        add: called with the temporary folder before it is renamed, to add files such as a model card.

    Returns:
        The folder.

    Raises:
        WriteError: the disk is full or fails; the old folder stays.
    """
    with whole.folder(folder, overwrite=True) as new:
        fill_pipeline(pipe.to(dtype) if dtype else pipe, new)
        add(new)
    return folder


def fill_pipeline(pipe: Any, new: Path) -> None:
    """Save a pipeline into an empty folder, in a form that older and newer versions of the libraries read."""
    pipe.save_pretrained(new, safe_serialization=True)
    for part in [name for name in ("text_encoder", "text_encoder_2") if name in pipe.components]:
        save_text_encoder(pipe.components[part], new / part)
        edit_json(new / part / "config.json", dtype="float32")  # else Transformers 5 would load the stored format
    for part in [name for name in ("tokenizer", "tokenizer_2") if name in pipe.components]:
        save_tokenizer(pipe.components[part], new / part)
    for name in ["model_index.json", *(path.relative_to(new) for path in new.glob("*/*config.json"))]:
        edit_json(new / name, _name_or_path=None)  # a path of this machine


def edit_json(new: Path, **values: Any) -> None:
    """Set top-level values of a JSON file that was just written; None removes a value."""
    kept = {**read_json(new, dict[str, Any], finite=False), **values}
    text = json.dumps(
        {name: value for name, value in kept.items() if name not in values or value is not None}, indent=2
    )
    new.write_text(text + "\n", encoding="utf-8")


def folder_size(folder: Path) -> int:
    """The size of all files in a folder, in bytes."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
