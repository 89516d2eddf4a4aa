"""Samplers by the names people know them by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, UnknownNameError
from . import classes
from .base import TableScheduler
from .grids import GRIDS, get_grid

SD_TRAINING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""The noise schedule of Stable Diffusion 1.x, 2.x and SDXL, for schedulers made without a config."""


@dataclass(frozen=True)
class SamplerInfo:
    """A sampler by name.

    Args:
        name: the name it is listed under.
        cls: its scheduler class.
        order: order of convergence (weak order for stochastic samplers).
        source: paper and equation.
        aliases: other names, as in Diffusers, AUTOMATIC1111, ComfyUI and k-diffusion.
        calls: network calls per solver step.
        stochastic: whether it draws noise.
        options: constructor arguments that make the class this sampler.
        note: what users should know.
    """

    name: str
    cls: type[TableScheduler]
    order: int
    source: str
    aliases: tuple[str, ...] = ()
    calls: str = "1"
    stochastic: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


_DPM, _DPMPP = "arXiv 2206.00927", "arXiv 2211.01095"

SAMPLERS: dict[str, SamplerInfo] = {
    info.name: info
    for info in (
        SamplerInfo(
            "ddpm", classes.DDPMScheduler, 1, "arXiv 2006.11239, alg. 2", stochastic=True, note="made for many steps"
        ),
        SamplerInfo("ddim", classes.DDIMScheduler, 1, "arXiv 2010.02502, eq. 12", note="eta=1 is ancestral"),
        SamplerInfo("plms", classes.PNDMScheduler, 2, "arXiv 2202.09778, eq. 12", ("pndm",), note="no extra call"),
        SamplerInfo("euler", classes.EulerDiscreteScheduler, 1, "arXiv 2206.00364, alg. 1", note="the step of DDIM"),
        SamplerInfo(
            "euler a",
            classes.EulerAncestralDiscreteScheduler,
            1,
            "arXiv 2010.02502, eq. 16 with eta = 1",
            ("euler ancestral",),
            stochastic=True,
        ),
        SamplerInfo("heun", classes.HeunDiscreteScheduler, 2, "arXiv 2206.00364, alg. 1", calls="2"),
        SamplerInfo(
            "dpm-solver 1",
            classes.DPMSolverMultistepScheduler,
            1,
            f"{_DPM}, eq. 4.1",
            options={"solver_order": 1, "algorithm_type": "dpmsolver"},
            note="the step of DDIM",
        ),
        SamplerInfo(
            "dpm-solver 2m",
            classes.DPMSolverMultistepScheduler,
            2,
            _DPM,
            ("dpm 2m",),
            options={"solver_order": 2, "algorithm_type": "dpmsolver"},
        ),
        SamplerInfo(
            "dpm-solver 3m",
            classes.DPMSolverMultistepScheduler,
            2,
            _DPM,
            ("dpm 3m",),
            options={"solver_order": 3, "algorithm_type": "dpmsolver"},
            note="as published",
        ),
        SamplerInfo(
            "dpm-solver 3m exact",
            classes.DPMSolverMultistepScheduler,
            3,
            _DPM,
            options={"solver_order": 3, "algorithm_type": "dpmsolver", "exact_third_order": True},
        ),
        SamplerInfo(
            "dpm++ 1",
            classes.DPMSolverMultistepScheduler,
            1,
            f"{_DPMPP}, eq. 9",
            options={"solver_order": 1, "algorithm_type": "dpmsolver++"},
            note="the step of DDIM",
        ),
        SamplerInfo(
            "dpm++ 2m",
            classes.DPMSolverMultistepScheduler,
            2,
            f"{_DPMPP}, alg. 2",
            ("dpmpp 2m",),
            options={"solver_order": 2, "algorithm_type": "dpmsolver++"},
        ),
        SamplerInfo(
            "dpm++ 3m",
            classes.DPMSolverMultistepScheduler,
            2,
            _DPMPP,
            ("dpmpp 3m",),
            options={"solver_order": 3, "algorithm_type": "dpmsolver++"},
            note="as published; smaller errors at usual counts",
        ),
        SamplerInfo(
            "dpm++ 3m exact",
            classes.DPMSolverMultistepScheduler,
            3,
            _DPMPP,
            ("dpmpp 3m exact",),
            options={"solver_order": 3, "algorithm_type": "dpmsolver++", "exact_third_order": True},
        ),
        SamplerInfo(
            "dpm++ 2s",
            classes.DPMSolverSinglestepScheduler,
            2,
            f"{_DPMPP}, alg. 1",
            ("dpmpp 2s",),
            calls="2",
            options={"solver_order": 2, "algorithm_type": "dpmsolver++"},
        ),
        SamplerInfo(
            "dpm++ 2m sde",
            classes.DPMSolverMultistepScheduler,
            1,
            f"{_DPMPP}, app. A",
            ("dpmpp 2m sde",),
            stochastic=True,
            options={"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        ),
    )
}


def list_samplers() -> list[SamplerInfo]:
    """Every sampler, in the order of the table of `sd-ext samplers`."""
    return list(SAMPLERS.values())


def _key(name: str) -> str:
    return re.sub(r"[\s_]+", " ", str(name).strip().lower())


def _names() -> dict[str, SamplerInfo]:
    """Every spelling: names and aliases, then class names, the first sampler of a class standing for it."""
    names = {_key(alias): info for info in SAMPLERS.values() for alias in (info.name, *info.aliases)}
    default = {"DPMSolverMultistepScheduler": SAMPLERS["dpm++ 2m"]}
    for info in SAMPLERS.values():
        names.setdefault(_key(info.cls.__name__), default.get(info.cls.__name__, info))
    return names


def find_sampler(name: str) -> tuple[SamplerInfo, str | None]:
    """The sampler a name stands for, and the grid that follows it ("dpm++ 2m karras"), if one does.

    Raises:
        UnknownNameError: listing the closest names.
    """
    names, key = _names(), _key(name)
    if key in names:
        return names[key], None
    for grid in sorted(GRIDS, key=len, reverse=True):
        ending = " " + _key(grid)
        if key.endswith(ending) and key[: -len(ending)] in names:
            return names[key[: -len(ending)]], grid
    raise UnknownNameError("sampler", name, SAMPLERS)


def make_scheduler(
    name: str,
    config: Mapping[str, Any] | None = None,
    *,
    grid: str | None = None,
    **overrides: Any,
) -> TableScheduler:
    """A scheduler by name, for a model with the given scheduler config.

        pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m karras", pipe.scheduler.config)

    Args:
        name: a sampler (see `list_samplers`), in any of its spellings, with or without a grid after it.
        config: config of any Diffusers scheduler of the model; None stands for Stable Diffusion's training schedule.
        grid: a grid's name (see `list_grids`); goes before one in `name`. None keeps what the config says.
        overrides: further constructor arguments.

    Raises:
        UnknownNameError: no such sampler or grid; the closest names are listed.
        InputError: a setting that cannot work.
    """
    info, named_grid = find_sampler(name)
    chosen = get_grid(grid).name if grid is not None else named_grid
    settings = {**info.options, **({"grid": chosen} if chosen else {}), **overrides}
    unknown = set(overrides) - set(info.cls._options)
    if unknown:
        raise InputError(
            f"{info.cls.__name__} has no option {', '.join(sorted(unknown))}; it has {', '.join(info.cls._options)}"
        )
    scheduler = info.cls.from_config(dict(SD_TRAINING if config is None else config), **settings)
    assert isinstance(scheduler, info.cls)
    return scheduler
