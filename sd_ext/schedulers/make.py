"""Schedulers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..declared import check
from ..errors import InputError
from .base import TableScheduler
from .find import Meant, habits, understand
from .grids import get_grid
from .info import SamplerInfo
from .programs import Program, get_program
from .registry import CARRIED, list_samplers
from .travel import FLAGS

SD_TRAINING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""The noise schedule of Stable Diffusion 1.x, 2.x and SDXL, for schedulers made without a config."""

AS_PLACED = {"discard_penultimate_sigma": False, "final_sigmas_type": "zero"}
"""What programs that say nothing of it do."""


OF_THE_MODEL = frozenset({"grid", "original_inference_steps", "set_alpha_to_one"})
"""Options that some samplers set and that configs say for the others: where steps go and end, at what a model was
distilled.
"""


def _own_options(info: SamplerInfo) -> dict[str, Any]:
    """The options that make this sampler what it is, those at their defaults included.

    A config may come from another sampler of the same class ("dpm++ 3m" from "dpm++ 2m sde"): whatever any sampler sets
    is set anew, so that nothing of it is left. The grid, and all that is about the model (`OF_THE_MODEL`), stays as the
    config says, unless this sampler sets it.
    """
    known = info.cls._options
    told_apart = {name for other in list_samplers() for name in other.options if name in known}
    return {name: known[name] for name in sorted(told_apart - OF_THE_MODEL)} | dict(info.options)


def make_scheduler(
    name: str,
    config: Mapping[str, Any] | None = None,
    *,
    grid: str | None = None,
    like: str | None = None,
    **overrides: Any,
) -> TableScheduler:
    """A scheduler by name, for a model with the given scheduler config.

        pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m karras", pipe.scheduler.config)

    Args:
        name: a sampler (see `list_samplers`), in any of its spellings, with or without a grid after it.
        config: config of any Diffusers scheduler of the model; None stands for Stable Diffusion's training schedule.
        grid: a grid's name (see `list_grids`); goes before one in `name`. None keeps what the config says.
        like: take the steps that another program takes, "a1111", "forge", "comfyui", "sdnext" or "invokeai" (see
            `programs`): its grid where none is named, its own of the name where one is, and its habits, such as leaving
            out the last sigma but one.
        overrides: further constructor arguments.

    Raises:
        UnknownNameError: no such sampler, grid or program; the closest names are listed.
        InputError: a setting that cannot work, or what is no name or config.
    """
    for option, value in {"name": name, "grid": grid, "like": like}.items():
        check(value, str if option == "name" else str | None, "make_scheduler", option)
    if config is not None and not isinstance(config, Mapping):
        inside = "; give its .config" if isinstance(getattr(config, "config", None), Mapping) else ""
        raise InputError(f"make_scheduler: config must be a scheduler's config, got {type(config).__name__}{inside}")
    meant = understand(name, like)
    info = meant.info
    if info.name in CARRIED and (grid is not None or like is not None):
        raise InputError(f"{info.name!r} has a grid of its own; leave out grid and like")
    settings = {**_own_options(info), **_grid_settings(meant, grid, None if like is None else get_program(like))}
    unknown = set(overrides) - set(info.cls._options)
    if unknown:
        raise InputError(
            f"{info.cls.__name__} has no option {', '.join(sorted(unknown))}; it has {', '.join(info.cls._options)}"
        )
    told = SD_TRAINING if config is None else config
    told = told if isinstance(told, dict) else dict(told)  # a scheduler's own config is of a class of Diffusers
    scheduler = info.cls.from_config(told, **{**settings, **overrides})
    assert isinstance(scheduler, info.cls)
    return scheduler


def _grid_settings(meant: Meant, grid: str | None, like: Program | None) -> dict[str, Any]:
    """Options that place the steps: by the grid that was asked for, or as a program does by itself.

    Args:
        meant: the sampler, and the grid after its name.
        grid: goes before that.
        like: the program whose habits are asked for.

    Raises:
        UnknownNameError: no such grid.
    """
    info, program = meant.info, like or meant.program
    grid = meant.grid if grid is None else grid
    if program is None:
        return {} if grid is None else {"grid": get_grid(grid).name}
    entry = meant.entry or habits(program, info)
    details = {option: value for option, value in entry.items() if option not in ("sampler", "grid")}
    if like is not None:
        details = {**AS_PLACED, **details}
        its = None if "grid" in info.options else program.grid
    else:
        its = None
    if (name := grid or entry.get("grid", its)) is None:
        return _known(details, info)
    placed = program.grid_options(name)
    placed = {"grid": get_grid(name).name} if placed is None else placed
    if "grid" not in placed:  # the spacing that the model's config has
        placed |= {"grid": None, **dict.fromkeys(FLAGS, False)}
    return _known({**details, **placed}, info)


def _known(options: Mapping[str, Any], info: SamplerInfo) -> dict[str, Any]:
    return {option: value for option, value in options.items() if option in info.cls._options}
