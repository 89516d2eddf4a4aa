"""The plan of training all weights of a U-Net for `--dry-run`; no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState

from sd_ext.errors import SeamError
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.full import estimate, on_disk, refuse, work_in_a_step
from sd_ext.training.lora.plan import buckets, captions, pictures, steps
from sd_ext.training.run.folder import check_folder
from sd_ext.training.run.machine import check_machine, uses_cpu
from sd_ext.training.run.memory import free_memory, gb
from sd_ext.training.train_text_to_image import TextToImageTask


def plan_full(config: TextToImageConfig) -> Iterator[str]:
    """Check a run and describe what it would do. Nothing is written.

    Yields:
        Lines of text: model, pictures, buckets, captions, steps, optimizer, trained parameters, memory, disk, work.

    Raises:
        InputError: the run could not work; says why.
    """
    check_machine(config)
    state = PartialState(cpu=uses_cpu(config.machine))
    task = TextToImageTask(config)
    config, made = task.config, "unet" not in task.files.parts
    said: Any = task
    facts = {
        "model": "a new U-Net" if made else f"{config.base.model} ({task.files.family})",
        "predicts": task.levels.prediction,
        "pictures": pictures(said),
        "buckets": buckets(said),
        "held out": f"{len(task.held_out)} pictures" if task.held_out else "none: no validation loss",
        "captions": captions(said),
        "steps": steps(said, state.num_processes),
        "optimizer": config.training(),
        "result": f"{Path(config.folder.out or 'OUT') / 'model'}, a {config.full.save_as}",
    }
    for name, text in facts.items():
        yield f"{name:<15} {text}"
    if config.folder.out:
        check_folder(config, task.name)
    try:
        needed, free = estimate(task, state.device), free_memory(state.device)
    except SeamError as error:
        yield f"{'memory':<15} not known: {error}"
        return
    what = "U-Net and text encoders" if config.full.train_text else "U-Net"
    yield f"{'trained':<15} {needed.trained:,} parameters ({what}, {config.full.weights})"
    yield f"{'memory':<15} {needed}, beside about 1 GB for Python; {gb(free)} free on {state.device.type}"
    checkpoint, result = on_disk(task, needed.trained)
    kept = config.folder.keep + 1  # one is written before the oldest goes
    yield f"{'disk':<15} {gb(kept * checkpoint + result)}: {kept} checkpoints of {gb(checkpoint)}, result {gb(result)}"
    flops = work_in_a_step(task)
    hours = flops * config.loop.steps / 1e13 / 3600
    yield f"{'work':<15} {flops / 1e12:.3g} TFLOP a step; {hours:.2g} hours at 10 TFLOP/s"
    refuse(needed, free, config)
