"""The first moments of a LoRA run: what can be checked without its base model is checked before the Hub is asked."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState

from sd_ext.training.diffusion.samples import gather
from sd_ext.training.lora.class_pictures import with_class_pictures
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.task import LoraTask, task_of
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run.machine import check_machine, uses_cpu

SCALE = 8  # pixels per latent of every model of Stable Diffusion that is published


def checked_task(config: LoraConfig) -> tuple[PartialState, LoraTask]:
    """The task of a run, its settings, machine and data checked; of a model on the Hub, these first.

    Raises:
        InputError: something that cannot work; nothing is downloaded for settings or data that cannot.
    """
    check_machine(config)
    state = PartialState(cpu=uses_cpu(config.machine))
    if on_hub(config.base.model) and config.task == LoraConfig.task:  # other kinds may need no pictures
        side = config.pictures.resolution[0]
        gather(config, SCALE, lambda items: with_class_pictures(config.prior, items, side))
    return state, task_of(config, find_trainable(config.base.model, config.base.variant, config.base.revision))


def on_hub(model: str) -> bool:
    """Whether a model is asked for on the Hub: it is neither the embedded one nor here."""
    return bool(model) and model != "embedded" and not Path(model).expanduser().exists()
