"""Samplers by the names people know them by."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from ..errors import InputError, UnknownNameError
from .base import TableScheduler
from .grids import Grid, get_grid, list_grids
from .info import SamplerInfo
from .samplers import FAMILIES

SD_TRAINING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""The noise schedule of Stable Diffusion 1.x, 2.x and SDXL, for schedulers made without a config."""

GROUP = "sd_ext.samplers"
"""Entry-point group in which other packages publish a `SamplerInfo`, or several."""

Program = Literal["a1111", "comfyui"]
PROGRAM_GRIDS = {"a1111": "uniform", "comfyui": "normal"}
"""The grid each program uses when none is chosen."""

CARRIED: dict[str, SamplerInfo] = {}
"""Samplers that are made of what a model's scheduler config carries, by name; each puts itself here. They have grids of
their own, and are not listed, since most models have none.
"""

NOT_TABLES = {
    "dpm adaptive": "it chooses its steps as it goes; 'dpm fast' takes the same ones without choosing",
    "smea": "it resizes the latent between calls",
}
"""Samplers of other programs that are not a table of coefficients, by a part of their name, and why."""


def _published(point: EntryPoint) -> list[SamplerInfo]:
    """What one entry point offers; a broken one is reported and left out, so that it cannot break the others."""
    try:
        value = point.load()
        infos = [value] if isinstance(value, SamplerInfo) else list(value)
        for info in infos:
            if not (isinstance(info, SamplerInfo) and issubclass(info.cls, TableScheduler)):
                raise TypeError(f"expected a SamplerInfo of a TableScheduler class, got {info!r}")
    except Exception as error:
        warnings.warn(f"the sampler plugin {point.value!r} cannot be used: {error!r}", stacklevel=2)
        return []
    return infos


@lru_cache(maxsize=1)
def all_samplers() -> dict[str, SamplerInfo]:
    """Every sampler by name: the package's, then those of other packages. One whose name the package has, or another
    plugin, is left out with a warning.
    """
    known = {info.name: info for family in FAMILIES for info in family.SAMPLERS}
    taken = set(_spellings(known.values()))
    for point in entry_points(group=GROUP):
        for info in _published(point):
            if _key(info.name) in taken:
                warnings.warn(f"the sampler plugin {point.value!r} offers {info.name!r}, which is taken", stacklevel=2)
                continue
            known[info.name] = info
            taken.add(_key(info.name))
    return known


def list_samplers() -> list[SamplerInfo]:
    """Every sampler, in the order of the table of `sd-ext samplers`."""
    return list(all_samplers().values())


def _words(name: str) -> list[str]:
    """The words of a name in small letters, without the "k" that k-diffusion's names begin with in some programs."""
    words = re.sub(r"[\s_-]+", " ", str(name).lower()).split()
    return words[1:] if words[:1] == ["k"] else words


def _key(name: str) -> str:
    """A name without differences of case, and with single spaces for spaces, hyphens and underscores."""
    return " ".join(_words(name))


def _is_default(info: SamplerInfo) -> bool:
    """Whether this sampler is what its class is without options."""
    return all(info.cls._options[name] == value for name, value in info.options.items())


def _spellings(infos: Iterable[SamplerInfo]) -> dict[str, SamplerInfo]:
    """Every spelling: names, then aliases, then class names, which stand for the sampler of the class's defaults."""
    infos = list(infos)
    names = {_key(info.name): info for info in infos}
    for info in infos:
        for alias in info.aliases:
            names.setdefault(_key(alias), info)
    for info in sorted(infos, key=_is_default, reverse=True):
        names.setdefault(_key(info.cls.__name__), info)
    return names


def _grid(name: str) -> Grid | None:
    try:
        return get_grid(name)
    except UnknownNameError:
        return None


def find_sampler(name: str) -> tuple[SamplerInfo, str | None]:
    """The sampler a name stands for, and the grid that follows it ("dpm++ 2m karras"), if one does.

    Args:
        name: in any spelling: a name, an alias or a class name, in any case, with spaces or underscores.

    Raises:
        UnknownNameError: listing the closest names.
        InputError: a sampler known elsewhere that cannot be had here; says why.
    """
    if info := CARRIED.get(_key(name)):
        return info, None
    names, words = _spellings(all_samplers().values()), _words(name)
    joined = {key.replace(" ", ""): info for key, info in reversed(names.items())}  # the first of equal ones stays
    for at in range(len(words), 0, -1):
        info = names.get(" ".join(words[:at])) or joined.get("".join(words[:at]))
        rest = " ".join(words[at:])
        grid = _grid(rest) if info and rest else None
        if info and (grid or not rest):
            return info, grid and grid.name
    for part, reason in NOT_TABLES.items():
        if part in " ".join(words).replace("++", " pp"):
            raise InputError(f"{name!r} cannot be a Diffusers scheduler: {reason}")
    if grid := _grid(name):
        raise InputError(f"{name!r} is a grid; write it after a sampler, such as 'dpm++ 2m {grid.name}'")
    raise UnknownNameError("sampler", name, _near(name) or all_samplers())


def _near(name: str) -> list[str]:
    """The samplers, with or without a grid, whose spelling is nearest to what was typed; none if nothing is near."""
    known = [info.name for info in list_samplers()]
    typed = " ".join(_words(name))
    return difflib.get_close_matches(
        typed, [*known, *(f"{k} {grid.name}" for k in known for grid in list_grids())], 3, 0.6
    )


def _own_options(info: SamplerInfo) -> dict[str, Any]:
    """The options that make this sampler what it is, those at their defaults included.

    A config may come from another sampler of the same class ("dpm++ 3m" from "dpm++ 2m sde"): whatever any sampler sets
    is set anew, so that nothing of it is left. The grid, and all that is about the model, stays as the config says.
    """
    known = info.cls._options
    told_apart = {name for other in list_samplers() for name in other.options if name in known} - {"grid"}
    return {name: known[name] for name in sorted(told_apart)} | dict(info.options)


def make_scheduler(
    name: str,
    config: Mapping[str, Any] | None = None,
    *,
    grid: str | None = None,
    like: Program | None = None,
    **overrides: Any,
) -> TableScheduler:
    """A scheduler by name, for a model with the given scheduler config.

        pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m karras", pipe.scheduler.config)

    Args:
        name: a sampler (see `list_samplers`), in any of its spellings, with or without a grid after it.
        config: config of any Diffusers scheduler of the model; None stands for Stable Diffusion's training schedule.
        grid: a grid's name (see `list_grids`); goes before one in `name`. None keeps what the config says.
        like: take the steps that "a1111" (AUTOMATIC1111, Forge) or "comfyui" take: its grid where none is named, and,
            for the samplers where it does so, without the last sigma but one.
        overrides: further constructor arguments.

    Raises:
        UnknownNameError: no such sampler, grid or program; the closest names are listed.
        InputError: a setting that cannot work.
    """
    info, named_grid = find_sampler(name)
    if like is not None and like not in PROGRAM_GRIDS:
        raise UnknownNameError("program", like, PROGRAM_GRIDS)
    settings: dict[str, Any] = {}
    if like is not None:
        settings = {"grid": PROGRAM_GRIDS[like], "discard_penultimate_sigma": like in info.drops_penultimate}
    settings |= _own_options(info)
    chosen = get_grid(grid).name if grid is not None else named_grid
    if info.name in CARRIED and (chosen or like):
        raise InputError(f"{info.name!r} has a grid of its own; leave out grid and like")
    if chosen is not None:
        settings["grid"] = chosen
    unknown = set(overrides) - set(info.cls._options)
    if unknown:
        raise InputError(
            f"{info.cls.__name__} has no option {', '.join(sorted(unknown))}; it has {', '.join(info.cls._options)}"
        )
    scheduler = info.cls.from_config(dict(SD_TRAINING if config is None else config), **{**settings, **overrides})
    assert isinstance(scheduler, info.cls)
    return scheduler
