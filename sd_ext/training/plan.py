"""What a LoRA run would do, from its settings; everything is checked and no weight is loaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from sd_ext.training.class_pictures import missing
from sd_ext.training.conditioning import cut_off
from sd_ext.training.configs import LoraConfig
from sd_ext.training.estimate import check_memory, estimate, free_memory, gb
from sd_ext.training.model_files import find_model
from sd_ext.training.optimizers import find_class
from sd_ext.training.train_lora import LoraTask


def plan_lora(config: LoraConfig) -> str:
    """The plan as text: pictures, buckets, steps, parameters, memory.

    Raises:
        InputError: the run could not work; says why.
    """
    find_class(config.optimizer)
    task = LoraTask(config, find_model(config.model, config.variant))
    config, device = (
        task.config,
        torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"),
    )
    needed = estimate(task)
    steps, per_epoch = config.steps, task.steps_per_epoch()
    pictures = len({sample.digest for sample in task.pictures.samples})
    lines = {
        "model": f"{config.model} ({task.files.base}), predicts {task.prediction}",
        "pictures": f"{pictures}, {len(task.pictures)} samples an epoch, {len(task.pictures.skipped)} left out",
        "buckets": buckets(task),
        "held out": f"{len(task.held_out)} pictures" if task.held_out else "none: no validation loss",
        "captions": captions(task),
        "class pictures": f"{missing(config)} of {config.class_images} to be made" if config.class_data else "none",
        "steps": f"{steps}, {per_epoch} an epoch: {steps / per_epoch:.1f} epochs",
        "trained": f"{needed.trained:,} parameters ({config.method}, rank {config.rank})",
        "memory": f"{needed}, beside about 1 GB for Python; {gb(free_memory(device))} free on {device.type}",
        "result": str(Path(config.out or "OUT") / "model"),
    }
    check_memory(needed, free_memory(device), config)
    return "\n".join(f"{name:<15} {text}" for name, text in lines.items())


def buckets(task: LoraTask) -> str:
    """How many samples each size has."""
    counts = Counter(f"{width}x{height}" for height, width in task.pictures.sizes)
    return ", ".join(f"{size}: {count}" for size, count in counts.most_common())


def captions(task: LoraTask) -> str:
    """How many texts there are, and which are too long."""
    tokenizer = task.files.load("tokenizer")
    spelled = [task.spelled(text) for text in task.texts]
    long = cut_off(tokenizer, spelled)
    cut = f"; {len(long)} are cut off after {tokenizer.model_max_length} tokens, e.g. {long[0][:60]!r}" if long else ""
    return f"{len(task.texts)} texts{cut}"
