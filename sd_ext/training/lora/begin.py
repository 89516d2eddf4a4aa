"""The first moments of a LoRA run: what can be checked without its base model is checked before the Hub is asked."""

from __future__ import annotations

from accelerate import PartialState

from sd_ext.training.diffusion.samples import check_before_hub
from sd_ext.training.lora.class_pictures import with_class_pictures
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.task import LoraTask, task_of
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run.machine import check_machine, uses_cpu


def checked_task(config: LoraConfig) -> tuple[PartialState, LoraTask]:
    """The task of a run, its settings, machine and data checked; of a model on the Hub, these first.

    Raises:
        InputError: something that cannot work; nothing is downloaded for settings or data that cannot.
    """
    check_machine(config)
    config.check_complete()
    state = PartialState(cpu=uses_cpu(config.machine))
    side = config.pictures.resolution[0]
    check_before_hub(config, lambda items: with_class_pictures(config.prior, items, side))
    return state, task_of(config, find_trainable(config.base.model, config.base.variant, config.base.revision))
