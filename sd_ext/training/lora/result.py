"""What a finished LoRA run leaves: OUT/model.

pytorch_lora_weights.safetensors   for Diffusers, with its strengths in the header
NAME_kohya.safetensors             the same for AUTOMATIC1111 and ComfyUI
learned_embeds.safetensors         new words (learned_embeds_2.safetensors: of SDXL's second text encoder)
samples/                           pictures of the prompts, and beside the base model's as a contact sheet
validation.png                     the losses
training.json                      what was trained, on what, how
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from sd_ext import __version__
from sd_ext.hub.finished import Facts
from sd_ext.lora import save_lora
from sd_ext.lora.formats.file_names import DIFFUSERS_FILE, kohya_file
from sd_ext.lora.kinds import find_kind
from sd_ext.training.lora.new_words import embeddings
from sd_ext.training.run.previews import labelled_sheet
from sd_ext.training.settings import LoraConfig, result_settings

if TYPE_CHECKING:
    from sd_ext.training.lora.task import LoraTask

SAVED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_result(task: LoraTask, new: Path, history: list[dict[str, float]], pictures: list[np.ndarray]) -> None:
    """Fill a new folder with everything above."""
    config = task.config
    write_weights(task, new)
    for number, table in enumerate(task.new_words):
        name = f"learned_embeds{f'_{number + 1}' if number else ''}.safetensors"
        save_file(embeddings(table, config.tokens, config.token_vectors), new / name)
    if pictures:
        write_pictures(new / "samples", task.prompts, task.base_pictures, pictures)
    plot_losses(new / "validation.png", history)
    text = json.dumps(asdict(facts(task, history, len(pictures))), indent=1)
    (new / "training.json").write_text(text, encoding="utf-8")


def write_weights(task: LoraTask, new: Path) -> None:
    """The LoRA in both formats; LoHa and LoKr in kohya's alone, since Diffusers' loader cannot read them."""
    config, lora, dtype = task.config, task.trained(), SAVED[task.config.save_dtype]
    notes = []
    if find_kind(config.method).in_diffusers:
        notes.append(save_lora(lora, new / DIFFUSERS_FILE, "diffusers", dtype=dtype))
    kohya = kohya_file(config.name)
    notes.append(save_lora(lora, new / kohya, "kohya", dtype=dtype, metadata=kohya_metadata(task)))
    for note in filter(None, dict.fromkeys(notes)):
        task.accelerator.print(note)


def kohya_metadata(task: LoraTask) -> dict[str, str]:
    """The entries of kohya's header that only the run knows."""
    config, side, learnt = task.config, task.config.resolution[0], len(task.learnt)
    entries: dict[str, Any] = {
        "ss_output_name": config.name,
        "ss_steps": config.steps,
        "ss_max_train_steps": config.steps,
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_text_encoder_lr": (config.text_encoder_learning_rate or config.learning_rate) if config.text_encoder else 0,
        "ss_lr_scheduler": config.lr_schedule,
        "ss_optimizer": config.optimizer,
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": config.accumulation,
        "ss_num_train_images": learnt,
        "ss_num_reg_images": len(task.pictures) - learnt,
        "ss_prior_loss_weight": config.prior_weight,
        "ss_num_validation_images": len(task.held_out or ()),
        "ss_num_batches_per_epoch": task.steps_per_epoch(task.accelerator.num_processes) * config.accumulation,
        "ss_lr_warmup_steps": config.warmup,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_network_dropout": config.dropout or None,
        "ss_max_grad_norm": config.clip,
        "ss_resolution": f"({side}, {side})",
        "ss_enable_bucket": config.buckets,
        "ss_flip_aug": config.flip,
        "ss_caption_dropout_rate": config.text_dropout,
        "ss_noise_offset": config.offset_noise or None,
        "ss_zero_terminal_snr": task.noise["rescale_betas_zero_snr"],
        "ss_min_snr_gamma": (config.gamma or 5.0) if config.loss_weighting == "min_snr" else None,
        "ss_seed": config.seed,
        "ss_mixed_precision": config.mixed_precision,
        "modelspec.title": config.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if task.prediction == "v_prediction" else "epsilon",
    }
    return {name: str(value) for name, value in entries.items()}


def write_pictures(new: Path, prompts: list[str], base: list[np.ndarray], pictures: list[np.ndarray]) -> None:
    """Each picture by itself, and all beside the base model's."""
    new.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(new / f"{number:04d}.png")
    labelled_sheet({"base": base, "LoRA": pictures}, prompts).save(new / "sheet.png")


def facts(task: LoraTask, history: list[dict[str, float]], pictures: int) -> Facts:
    """What `training.json` holds."""
    config: LoraConfig = task.config
    return Facts(
        name=config.name,
        base_model=base_model(task.files.source),
        family=task.files.base,
        instance_prompt=config.instance_prompt or " ".join([config.prefix, *config.tokens]).strip(),
        prompts=tuple(task.prompts[:pictures]),
        seeds=tuple(config.preview_seed + number for number in range(pictures)),
        guidance=config.preview_guidance,
        settings=result_settings(config),
        steps=config.steps,
        pictures=len({sample.digest for sample in task.learnt}),
        validation=tuple((int(e["step"]), e["validation_loss"]) for e in history if "validation_loss" in e),
        tokens=tuple(config.tokens),
        sd_ext=__version__,
    )


def base_model(source: str) -> str:
    """A Hub id or "embedded" as it was given; a folder by its whole path, which stays true in another folder."""
    return str(Path(source).resolve()) if source != "embedded" and Path(source).is_dir() else source


def plot_losses(new: Path, history: list[dict[str, float]]) -> None:
    """Training and validation loss against steps; nothing where matplotlib is missing or there is nothing to see."""
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
