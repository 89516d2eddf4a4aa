"""What training all weights of a U-Net takes: memory, disk and work, without loading weights."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate import PartialState

from sd_ext.errors import InputError, SeamError
from sd_ext.seams.torch import fake_tensors
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.diffusion.task import DiffusionTask
from sd_ext.training.lora.estimate import (
    Estimate,
    Workload,
    decode_once,
    encode_once,
    loss_once,
    train_once,
    vae_on_meta,
)
from sd_ext.training.lora.network import DTYPES
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.run.machine import uses_cpu
from sd_ext.training.run.memory import free_memory, gb, make_fake, peak_bytes, size_of

log = logging.getLogger(__name__)


class FullTask(DiffusionTask):
    """A task that trains whole models, which can be made without weights."""

    config: TextToImageConfig

    def on_meta(self) -> list[Any]:
        """The U-Net, and the text encoders if they are trained, on PyTorch's meta device; all of them are trained."""
        raise AssertionError("every such task makes its own models")


def work_of(task: FullTask) -> Workload:
    """What the memory of a run depends on."""
    return Workload(task.config, task.files, task.sizes, task.channels, task.scale)  # type: ignore[arg-type]


def estimate(task: FullTask, device: torch.device) -> Estimate:
    """Estimate the memory of a run, without Python and the libraries.

    Args:
        task: the run.
        device: the device it will run on.

    Raises:
        SeamError: this version of PyTorch is not supported.
    """
    config, work, models = task.config, work_of(task), task.on_meta()
    vae, trained = vae_on_meta(task.files), sum(p.numel() for model in models for p in model.parameters())
    largest = max(p.numel() for model in models for p in model.parameters())
    with fake_tensors(), torch.device(device.type):
        for model in models:
            make_fake(model, DTYPES[config.full.weights])
        make_fake(vae, torch.float32)
        weights = size_of([*models, *([] if config.cache.cache else [vae])])
        loss = DiffusionLoss(models[0], config.loss.loss, models[1] if len(models) > 1 else None).train()
        activations = peak_bytes(models, lambda: train_once(work, loss, device.type))
        encoding = size_of([vae]) + peak_bytes([vae], lambda: encode_once(work, vae))
        drawing = size_of([vae]) + peak_bytes([vae], lambda: decode_once(work, vae))
    gradients = size_of(models)
    activations = max(0, activations - gradients)  # the pass made them too; they are counted below
    state = trained * (config.optimizer.preset.state_bytes + (4 if config.loop.ema else 0))
    if config.full.weights == "bf16":
        state += largest * 8 + (trained * 2 if config.full.rounding == "kahan" else 0)
    held = largest * DTYPES[config.full.weights].itemsize if config.full.fused_backward else gradients
    drawing = drawing if config.folder.validate_every else 0
    return Estimate(weights, state + held, activations, encoding, drawing, trained)


def on_disk(task: FullTask, trained: int) -> tuple[int, int]:
    """(bytes of a checkpoint, bytes of the result); the cache of latents and texts comes on top."""
    config, files = task.config, task.files
    each = DTYPES[config.full.weights].itemsize
    kahan = 2 if config.full.rounding == "kahan" and config.full.weights == "bf16" else 0
    checkpoint = trained * (each + config.optimizer.preset.state_bytes + kahan + (4 if config.loop.ema else 0))
    with torch.device("meta"):
        rest = ["vae", *(() if config.full.train_text else files.text_parts)]
        others = sum(p.numel() for part in rest for p in files.without_weights(part).parameters())
    return checkpoint, trained * each + others * 4


def work_in_a_step(task: FullTask) -> float:
    """Floating-point operations of an optimizer step's forward and backward passes in one process."""
    from torch.utils.flop_counter import FlopCounterMode  # not where torch lacks what it is made of

    models, counter = task.on_meta(), FlopCounterMode(display=False)
    loss = DiffusionLoss(models[0], task.config.loss.loss, models[1] if len(models) > 1 else None).float().train()
    with torch.device("meta"), counter:
        loss_once(work_of(task), loss).backward()
    return counter.get_total_flops() * task.config.loop.accumulation


def check_fits(task: FullTask) -> None:
    """Refuse a run of a model that is there if it does not fit into free memory.

    Raises:
        InputError: see `refuse`.
    """
    device = PartialState(cpu=uses_cpu(task.config.machine)).device
    free, models = free_memory(device), task.on_meta()
    if not task.config.full.memory_check or 40 * size_of(models) < free // 10:  # small networks fit anyway
        return
    try:
        refuse(estimate(task, device), free, task.config)
    except SeamError as error:
        log.warning("whether the run fits into memory is not checked: %s", error)


def refuse(needed: Estimate, free: int, config: TextToImageConfig) -> None:
    """Refuse a run that needs more memory than is free, unless the setting `memory_check` is off.

    Raises:
        InputError: it does not fit; says how much is needed and free, and which settings to change.
    """
    if not config.full.memory_check or needed.total <= free:
        return
    helps = {
        "gradient_checkpointing = true": not config.unet.gradient_checkpointing,
        "weights = bf16 (with mixed_precision = bf16)": config.full.weights == "fp32",
        "fused_backward = true (with clip = 0)": not config.full.fused_backward,
        "optimizer = adafactor or adamw8bit": config.optimizer.optimizer == "adamw",
        "ema = 0": config.loop.ema > 0,
        "a smaller batch_size (with accumulation for the same step)": config.loop.batch_size > 1,
    }
    advice = [text for text, able in helps.items() if able] or [f"a resolution below {max(config.pictures.resolution)}"]
    raise InputError(
        f"the run needs about {needed}, {gb(free)} are free; set {', or '.join(advice)}; "
        "or memory_check = false if you know better"
    )
