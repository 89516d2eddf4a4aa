"""A run that begins with the LoRA of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sd_ext.errors import InputError
from sd_ext.lora import Adapter, Lora, ModuleName, from_peft, read_lora, resize
from sd_ext.lora.low_rank import Keep
from sd_ext.lora.plain import has_dora
from sd_ext.models import Model
from sd_ext.training.lora.config import LoraConfig


@torch.no_grad()
def put(source: str, models: Mapping[str, nn.Module], files: Model, config: LoraConfig) -> list[str]:
    """Put the LoRA of a file into adapters that have just been made, in place.

    Every kind that can be read becomes a LoRA of the run's ranks: exactly where the rank suffices, else by the nearest
    one. Directions that are left over start as they were made, so that they can be trained. A DoRA goes into a DoRA of
    the same ranks.

    Args:
        source: the file.
        models: models with adapters, by part name.
        files: the base model.
        config: all settings.

    Returns:
        Notes for the user: what is left out, and what is not exact.

    Raises:
        InputError: the file is no LoRA for such a model, none of its modules is trained, or the run trains adapters of
            a kind that a LoRA does not fit.
    """
    given, method = read_lora(source), config.adapters.method
    if method not in ("lora", "dora") or config.adapters.changes_base:
        what = f"init = {config.adapters.init}" if config.adapters.changes_base else f"method = {method}"
        raise InputError(f"--from {source}: {what} starts from no file; set method = lora and init = default")
    if given.base and given.base != files.family:
        raise InputError(f"--from {source}: it is a LoRA for {given.base}, and the model is {files.family}")
    mine = from_peft(dict(models), base=files.family).adapters
    common = {module: adapter for module, adapter in given.adapters.items() if module in mine}
    if not common:
        raise InputError(f"--from {source}: none of its modules is trained here; see targets, blocks and text_encoder")
    notes = []
    if lost := sorted(str(module) for module in given.adapters if module not in mine):
        notes.append(f"{source}: {len(lost)} modules are not trained here and are left out, such as {lost[0]}")
    found = replace(given, adapters=common)
    if method == "dora" or has_dora(found):
        _put_dora(source, found, mine, method)
        return notes
    return notes + _put_plain(source, found, mine, files)


def _put_plain(source: str, given: Lora, mine: Mapping[ModuleName, Adapter], files: Model) -> list[str]:
    base = None if all(adapter.plain for adapter in given.adapters.values()) else files
    errors: dict[ModuleName, float] = {}
    for rank in sorted({adapter.rank for module, adapter in mine.items() if module in given.adapters}):
        some = {module: adapter for module, adapter in given.adapters.items() if mine[module].rank == rank}
        fitted = resize(replace(given, adapters=some), base=base, keep=Keep(rank=rank))
        errors |= fitted.errors
        for module, adapter in fitted.adapters.items():
            _fill(mine[module], adapter)
    worst = max(errors, key=lambda module: errors[module], default=None)
    if worst is None or errors[worst] < 1e-4:
        return []
    return [f"{source} is cut to the ranks of this run: {worst} is off by {errors[worst]:.2g}, all others by less"]


def _fill(mine: Adapter, given: Adapter) -> None:
    """Copy a LoRA's factors into those of another of at least its rank, which then makes the same change."""
    factors = given.rules.two_factors(given.tensors)
    assert factors is not None, "resize made it, of the plain kind"
    up, down = factors
    own_up, own_down = mine.up[:, : len(down)], mine.down[: len(down)]
    own_up.copy_((up * (given.scale / mine.scale)).reshape(own_up.shape))
    own_down.copy_(down.reshape(own_down.shape))


def _put_dora(source: str, given: Lora, mine: Mapping[ModuleName, Adapter], method: str) -> None:
    fits: dict[str, Any] = {}
    for module, adapter in given.adapters.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
        fits[str(module)] = shapes == {name: tuple(tensor.shape) for name, tensor in mine[module].tensors.items()}
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise InputError(
            f"--from {source}: {wrong[0]} does not fit a {method} of this rank; a DoRA goes into method = dora of the "
            "same rank, and `sd-ext convert resize --base-model` makes a LoRA of it"
        )
    for module, adapter in given.adapters.items():
        own = mine[module]
        for name, tensor in own.tensors.items():
            factor = adapter.scale / own.scale if name == "up" else 1.0
            tensor.copy_(adapter.tensors[name].float() * factor)
