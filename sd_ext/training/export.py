"""A usable LoRA of any checkpoint of a run, made without data, weights of the base model, or a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sd_ext import whole
from sd_ext.declared import make
from sd_ext.errors import InputError
from sd_ext.lora import Lora, from_peft
from sd_ext.training.diffusion.base import noise_of
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.network import build_on_meta
from sd_ext.training.lora.new_words import Words
from sd_ext.training.lora.result import Finished, Noted, write_result
from sd_ext.training.lora.start import start_of, without_start
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.optimizer.state import differences
from sd_ext.training.run.exports import EXPORTS
from sd_ext.training.run.history import read_history
from sd_ext.training.run.point import Point, find_point
from sd_ext.training.scripts import SCRIPTS
from sd_ext.training.settings.config import Config
from sd_ext.training.settings.kept import SETTINGS, kept_settings


def export(
    source: str, out: Path | None = None, ema: bool | None = None, overwrite: bool = False
) -> tuple[Path, list[str]]:
    """Write the LoRA of a checkpoint, as the run itself would have.

    Args:
        source: RUN or RUN@STEP.
        out: the folder to write; None for RUN/exports/step-..., which is left alone if it is there.
        ema: the averaged weights (True), those that are trained (False), or averaged ones if there are any (None).
        overwrite: replace `out` if it exists.

    Returns:
        (the folder, notes on its files).

    Raises:
        InputError: no run of a LoRA, no such step, or no averages; or its base model cannot be found.
        WriteError: the folder exists or cannot be written.
    """
    point = find_point(source)
    config = config_of(point)
    averaged = "ema.safetensors" in point.tensors
    if ema and not averaged:
        raise InputError(f"{point.run} keeps no averaged weights; leave out --ema")
    tensors = point.tensors["model.safetensors" if ema is False or not averaged else "ema.safetensors"]
    target = out or point.run / EXPORTS / (point.folder.name + ("-without-ema" if ema is False and averaged else ""))
    if out is None and target.exists():
        return target, []
    files = find_trainable(config.base.model, config.base.variant, config.base.revision)
    model, models = without_weights(config, files)
    lora, words = trained(model, models, tensors, point, config.adapters.changes_base, files.family)
    finished = Finished(
        config=config,
        step=point.step,
        lora=lora,
        new_words=words,
        base=files.family,
        model=files,
        noise=noise_of(files, config.prediction),
        history=[entry for entry in read_history(point.run / "history.jsonl") if entry["step"] <= point.step],
        noted=make(Noted, point.state["notes"] or {}, str(point.folder)),
        rows={},
        drawn=[],
    )
    with whole.folder(target, overwrite) as new:
        notes = write_result(finished, new)
    return target, notes


def config_of(point: Point) -> LoraConfig:
    """The settings of a run.

    Raises:
        InputError: it is no run of a LoRA, or its settings cannot be read.
    """
    name = str(point.record.get("run"))
    _, cls = SCRIPTS.get(name, ("", Config))
    if not issubclass(cls, LoraConfig):
        raise InputError(f"{point.run} is a run of a {name}; only those of LoRAs are exported before their end")
    return kept_settings(cls, point.run / SETTINGS, allow_import=True)  # no optimizer is imported here


def without_weights(config: LoraConfig, files: Any) -> tuple[DiffusionLoss, dict[str, nn.Module]]:
    """The module that a run trains, with shapes but no weights, and its models with adapters by part name."""
    unet, towers = build_on_meta(config, files)
    adapted = dict(towers.encoders) if towers is not None and config.text.text_encoder else {}
    return DiffusionLoss(unet, config.loss.loss, towers), {"unet": unet, **adapted}


def trained(
    model: DiffusionLoss,
    models: dict[str, nn.Module],
    tensors: dict[str, Tensor],
    point: Point,
    changes_base: bool,
    family: str,
) -> tuple[Lora, list[Words]]:
    """The LoRA and the new words that a checkpoint's tensors are.

    Args:
        model, models: from `without_weights`; the tensors become their trained weights.
        tensors: the trained weights by name.
        point: the checkpoint, for messages, and for the starting adapters of its run.
        changes_base: whether there are some, see `keep_start`.
        family: of the base model.

    Raises:
        InputError: the tensors are not those that these settings train.
    """
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    if names != tensors.keys():
        differ = differences(sorted(tensors.keys() - names), sorted(names - tensors.keys()))
        raise InputError(f"{point.folder} is not of the settings in {point.run / SETTINGS} ({differ})")
    start = start_of(models, point.run / "start.safetensors") if changes_base else None
    model.load_state_dict(tensors, strict=False, assign=True)
    lora = from_peft(models, base=family)
    encoders: Any = model.towers.encoders.values() if model.towers is not None else ()
    tables = [encoder.get_input_embeddings() for encoder in encoders]
    return without_start(lora, start) if start else lora, [table for table in tables if isinstance(table, Words)]
