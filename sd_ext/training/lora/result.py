"""Writes the result of a LoRA run, OUT/model:

pytorch_lora_weights.safetensors   the LoRA for Diffusers, with ranks and alphas in the header
NAME_kohya.safetensors             the same LoRA for AUTOMATIC1111 and ComfyUI
NAME_comfyui.safetensors           of a DoRA: a plain LoRA for ComfyUI, which computes DoRA otherwise
learned_embeds.safetensors         new words (learned_embeds_2.safetensors: for SDXL's second text encoder)
embeddings/WORD.safetensors        each for AUTOMATIC1111 and ComfyUI: of SDXL both encoders' in one, clip_l and clip_g
samples/                           a picture of each prompt, and a contact sheet beside the base model's pictures
validation.png                     a plot of training and validation loss
training.json                      facts about the run: base model, settings, pictures, prompts, losses
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from sd_ext import __version__
from sd_ext.errors import InputError
from sd_ext.hub.finished import Facts
from sd_ext.lora import Lora, save_lora
from sd_ext.lora.formats.file_names import DIFFUSERS_FILE, comfyui_file, kohya_file
from sd_ext.lora.kinds import find_kind
from sd_ext.lora.plain import has_dora, told, without_dora
from sd_ext.models import Model
from sd_ext.sheets import labelled_sheet
from sd_ext.training.diffusion.settings import Shot
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.new_words import Words, embeddings, file_names, in_one_file
from sd_ext.training.objective.settings import WEIGHTS

SAVED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Noted:
    """What a result tells of the data that were trained on; each checkpoint has it.

    Args:
        samples: number of samples of the data in an epoch.
        class_samples: number of samples of class pictures in an epoch.
        held_out: number of held-out samples.
        pictures: number of different pictures of the data.
        steps_per_epoch: optimizer steps in an epoch.
        prompts: the prompts of the previews.
    """

    samples: int
    class_samples: int
    held_out: int
    pictures: int
    steps_per_epoch: int
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """The results of a run, at its end or before.

    Args:
        config: all settings.
        step: the number of steps done.
        lora: the trained LoRA.
        new_words: the embedding table with the new words of each text encoder.
        base: the base model's family: "sd15", "sd21" or "sdxl".
        model: the base model.
        noise: the noise schedule: keyword arguments of Diffusers' schedulers.
        history: the entries of the log.
        noted: facts on the data.
        rows: the rows of the contact sheet, by label; empty if there are none.
        drawn: a picture of each prompt by the LoRA; empty if there are none.
        shots: what those show, and how they were drawn.
    """

    config: LoraConfig
    step: int
    lora: Lora
    new_words: list[Words]
    base: str
    model: Model
    noise: dict[str, Any]
    history: list[dict[str, float]]
    noted: Noted
    rows: dict[str, list[Image.Image]]
    drawn: list[Image.Image]
    shots: Sequence[Shot] = ()


def write_result(finished: Finished, new: Path) -> list[str]:
    """Write all files of the result into an empty folder.

    Returns:
        Notes for the user on the files, without repetitions.
    """
    words = finished.config.words
    notes = write_weights(finished, new)
    for number, table in enumerate(finished.new_words):
        name = f"learned_embeds{f'_{number + 1}' if number else ''}.safetensors"
        save_file(embeddings(table, words.tokens, words.token_vectors), new / name)
    if finished.new_words:
        (new / "embeddings").mkdir()
        names = file_names(words.tokens)
        for token, tensors in in_one_file(finished.new_words, words.tokens, words.token_vectors).items():
            save_file(tensors, new / "embeddings" / f"{names[token]}.safetensors")
            notes.append(f"{token} is written {names[token]} in A1111 and ComfyUI, with the file in embeddings/")
    if finished.drawn:
        write_pictures(finished, new / "samples")
    plot_losses(new / "validation.png", finished.history)
    (new / "training.json").write_text(json.dumps(asdict(facts(finished)), indent=1), encoding="utf-8")
    return notes


def write_weights(finished: Finished, new: Path) -> list[str]:
    """Write the LoRA in both formats; LoHa and LoKr only in kohya's, since Diffusers' loader cannot read them.

    A DoRA is written once more, as a plain LoRA for ComfyUI. Where the base model can no longer be read, that is said.

    Args:
        finished: the results.
        new: the folder to write into.

    Returns:
        Notes for the user on the files, without repetitions.
    """
    lora, settings = finished.lora, finished.config.result
    dtype, notes = SAVED[settings.save_dtype], []
    if find_kind(finished.config.adapters.method).in_diffusers:
        notes.append(save_lora(lora, new / DIFFUSERS_FILE, "diffusers", dtype=dtype))
    kohya = new / kohya_file(settings.name)
    notes.append(save_lora(lora, kohya, "kohya", dtype=dtype, metadata=kohya_metadata(finished)))
    if has_dora(lora):
        notes += _for_comfyui(finished, new / comfyui_file(settings.name), dtype)
    return list(filter(None, dict.fromkeys(notes)))


def _for_comfyui(finished: Finished, path: Path, dtype: torch.dtype) -> list[str]:
    try:
        plain = without_dora(finished.lora, finished.model)
    except InputError as error:
        return [f"no plain LoRA for ComfyUI was written: {error}"]
    note = save_lora(plain, path, "kohya", dtype=dtype, metadata=kohya_metadata(finished))
    return [told(plain, path.name), note]


def kohya_metadata(finished: Finished) -> dict[str, str]:
    """The metadata of kohya's format that describes the training run (`ss_...` and `modelspec...`)."""
    config, rate, noise = finished.config, finished.config.rate.learning_rate, finished.noise
    side, loop, loss = config.pictures.resolution[0], config.loop, config.loss
    entries: dict[str, Any] = {
        "ss_output_name": config.result.name,
        "ss_steps": finished.step,
        "ss_max_train_steps": loop.steps,
        "ss_learning_rate": rate,
        "ss_unet_lr": rate,
        "ss_text_encoder_lr": (config.text.text_encoder_learning_rate or rate) if config.text.text_encoder else 0,
        "ss_lr_scheduler": config.rate.lr_schedule,
        "ss_optimizer": config.optimizer.optimizer,
        "ss_batch_size_per_device": loop.batch_size,
        "ss_gradient_accumulation_steps": loop.accumulation,
        "ss_num_train_images": finished.noted.samples,
        "ss_num_reg_images": finished.noted.class_samples,
        "ss_clip_skip": config.captions.clip_skip if config.captions.clip_skip > 1 else None,
        "ss_max_token_length": 75 * config.captions.caption_chunks if config.captions.caption_chunks > 1 else None,
        "ss_prior_loss_weight": config.prior.prior_weight,
        "ss_num_validation_images": finished.noted.held_out,
        "ss_num_batches_per_epoch": finished.noted.steps_per_epoch * loop.accumulation,
        "ss_lr_warmup_steps": config.rate.warmup,
        "ss_gradient_checkpointing": config.unet.gradient_checkpointing,
        "ss_network_dropout": config.adapters.dropout or None,
        "ss_max_grad_norm": loop.clip,
        "ss_resolution": f"({side}, {side})",
        "ss_enable_bucket": config.pictures.buckets,
        "ss_flip_aug": config.data.flip,
        "ss_caption_dropout_rate": config.captions.text_dropout,
        "ss_noise_offset": config.noise.offset_noise or None,
        "ss_zero_terminal_snr": noise["rescale_betas_zero_snr"],
        "ss_min_snr_gamma": (loss.gamma or WEIGHTS["min_snr"]) if loss.loss_weighting == "min_snr" else None,
        "ss_seed": loop.seed,
        "ss_mixed_precision": config.machine.mixed_precision,
        "modelspec.title": config.result.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if noise["prediction_type"] == "v_prediction" else "epsilon",
    }
    return {name: str(value) for name, value in entries.items()}


def write_pictures(finished: Finished, new: Path) -> None:
    """Write each picture to a file of its own, and a contact sheet of all beside the base model's."""
    new.mkdir()
    for number, picture in enumerate(finished.drawn):
        picture.save(new / f"{number:04d}.png")
    labelled_sheet(finished.rows, finished.noted.prompts).save(new / "sheet.png")


def facts(finished: Finished) -> Facts:
    """The contents of `training.json`."""
    config, shots = finished.config, finished.shots[: len(finished.drawn)]
    tokens, measured = config.words.tokens, [entry for entry in finished.history if "validation_loss" in entry]
    return Facts(
        name=config.result.name,
        base_model=base_model(finished.model.name),
        family=finished.base,
        instance_prompt=config.captions.instance_prompt or " ".join([config.captions.prefix, *tokens]).strip(),
        prompts=tuple(shot.prompt for shot in shots),
        seeds=tuple(shot.seed for shot in shots),
        guidance=shots[0].guidance if shots else config.previews.preview_guidance,
        drawn=tuple(asdict(shot) for shot in shots),
        settings=config.result_settings(),
        steps=finished.step,
        pictures=finished.noted.pictures,
        validation=tuple((int(entry["step"]), entry["validation_loss"]) for entry in measured),
        tokens=tokens,
        sd_ext=__version__,
    )


def base_model(source: str) -> str:
    """The base model's name for `training.json`: Hub ids and "embedded" as given, the absolute path of others."""
    return str(Path(source).resolve()) if source != "embedded" and Path(source).exists() else source


def plot_losses(new: Path, history: list[dict[str, float]]) -> None:
    """Plot training and validation loss against steps, as PNG.

    Writes nothing if matplotlib is not installed or the log has fewer than two entries.

    Args:
        new: the file to write.
        history: the entries of the log.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:  # the extra `train`
        return
    if len(history) < 2:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([e["step"] for e in history], [e["loss"] for e in history], alpha=0.5, label="training (one step)")
    measured = [e for e in history if "validation_loss" in e]
    if measured:
        steps, losses = [e["step"] for e in measured], [e["validation_loss"] for e in measured]
        axes.plot(steps, losses, "o-", label="validation (held-out pictures, fixed noise)")
    axes.set(xlabel="optimizer steps", ylabel="loss")
    axes.legend()
    FigureCanvasAgg(figure).print_png(new)
