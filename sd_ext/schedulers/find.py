"""Which sampler a name means, in the spellings of people and of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..errors import InputError, UnknownNameError
from .grids import Grid, get_grid
from .grids import spellings as grid_spellings
from .info import SamplerInfo
from .programs import Program, get_program, programs
from .registry import CARRIED, all_samplers, spellings
from .spelling import distance, key, nearest, words

IMPLICIT = "an implicit step is an equation with the network in it, and is solved by asking it until nothing changes"
NOT_TABLES = {
    "dpm adaptive": "it chooses its steps as it goes; 'dpm fast' takes the same ones without choosing",
    **dict.fromkeys(("smea", "dy"), "it resizes the latent between calls"),
    **dict.fromkeys(
        ("stork", "stork2", "stork4", "stork 2", "stork 4"),
        "it extrapolates velocities, for which a table would need the latents before; 'abnorsett 3' extrapolates x0",
    ),
    "perflow": "it is for networks trained on a process of its own, straight between four noise levels",
    **dict.fromkeys(("amed", "amed solver"), "a network of its own chooses its steps for each picture"),
    **dict.fromkeys(("gauss-legendre", "radau", "lobatto", "crouzeix", "crank-nicolson", "implicit"), IMPLICIT),
}
"""Samplers of other programs that are not a table of coefficients, by words of their name, and why."""


LONGEST = 100
"""Letters of what may be a misspelt name: what a file of strangers says may be of any length."""


@dataclass(frozen=True)
class Meant:
    """What a name means.

    Args:
        info: the sampler.
        grid: the grid that follows the sampler's name, as it was typed.
        entry: what the program says of the sampler, if this is a program's name; see `programs`.
        program: that program.
    """

    info: SamplerInfo
    grid: str | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)
    program: Program | None = None


def find_sampler(name: str) -> tuple[SamplerInfo, str | None]:
    """The sampler a name stands for, and the grid that follows it ("dpm++ 2m karras"), by our names.

    Args, Raises:
        See `understand`.
    """
    meant = understand(name)
    options = meant.program.grid_options(meant.grid) if meant.program and meant.grid else None
    grid = options.get("grid") if options else meant.grid
    return meant.info, grid and get_grid(grid).name


def understand(name: str, like: str | None = None) -> Meant:
    """What a name means.

    Args:
        name: in any spelling: a name, an alias or a class name, in any case, with spaces or underscores, and a grid
            after it or none.
        like: the program whose names go before ours; without one, ours go before those of all programs.

    Raises:
        UnknownNameError: listing the closest names.
        InputError: a sampler known elsewhere that cannot be had here; says why.
    """
    if info := CARRIED.get(key(name)):
        return Meant(info)
    program = None if like is None else get_program(like)
    meant = (_of_program(name, program) if program else None) or _ours(name, program)
    if meant and meant.grid and like is None and (grid := _grid(name)):  # "ddim uniform"
        raise InputError(_is_no_sampler(name, grid))
    for part, reason in () if meant else NOT_TABLES.items():
        if f" {key(part)} " in f" {key(name)} ":
            raise InputError(f"{name!r} cannot be a Diffusers scheduler: {reason}")
    if meant := meant or next(filter(None, (_of_program(name, each) for each in programs().values())), None):
        return meant
    if grid := _grid(name):
        raise InputError(_is_no_sampler(name, grid))
    raise UnknownNameError("sampler", name, all_samplers(), _near(name))


def _is_no_sampler(name: str, grid: Grid) -> str:
    return f"{name!r} is a grid; write it after a sampler, such as 'dpm++ 2m {grid.name}'"


def _grid(name: str) -> Grid | None:
    try:
        return get_grid(name)
    except UnknownNameError:
        return None


def _ours(name: str, program: Program | None = None) -> Meant | None:
    """A sampler by our names, and the grid, ours or the program's, that follows it."""
    names, typed = spellings(all_samplers().values()), words(name)
    joined = {each.replace(" ", ""): info for each, info in reversed(names.items())}  # the first of equal ones stays
    for at in range(len(typed), 0, -1):
        info = names.get(" ".join(typed[:at])) or joined.get("".join(typed[:at]))
        rest = " ".join(typed[at:])
        if info and (not rest or _is_grid(rest, program)):
            return Meant(info, rest or None)
    return None


def _of_program(name: str, program: Program) -> Meant | None:
    """A sampler by a program's names, and the grid, the program's or ours, that follows it."""
    typed = words(name)
    for at in range(len(typed), 0, -1):
        its, rest = " ".join(typed[:at]), " ".join(typed[at:])
        entry = program.samplers.get(its)
        if entry is None or (rest and not _is_grid(rest, program)):
            continue
        if "refused" in entry:
            raise InputError(f"{name!r} of {program.title} cannot be a scheduler here: {entry['refused']}")
        if meant := _ours(entry.get("sampler", its)):
            return Meant(meant.info, rest or None, entry, program)
    return None


def _is_grid(name: str, program: Program | None) -> bool:
    return bool(program and program.grid_options(name) is not None) or _grid(name) is not None


def habits(program: Program, info: SamplerInfo) -> Mapping[str, Any]:
    """What a program does with a sampler of ours, whatever it was called; nothing if it does not have it."""
    return next((entry for entry, its in _samplers_of(program) if its is info), {})


@cache
def _samplers_of(program: Program) -> list[tuple[Mapping[str, Any], SamplerInfo]]:
    """What a program says of each of its samplers, and which of ours it is."""
    told = [
        (entry, _ours(entry.get("sampler", name))) for name, entry in program.samplers.items() if "refused" not in entry
    ]
    return [(entry, meant.info) for entry, meant in told if meant]


def _near(name: str) -> list[str]:
    """The samplers, with or without a grid, whose spelling is nearest to what was typed; none if nothing is near."""
    if len(name) > LONGEST:
        return []
    spelled = spellings(all_samplers().values())
    grids = {key(each): grid.name for each, grid in grid_spellings().items()}
    typed, found = words(name), dict[str, int]()
    for at in range(1, len(typed) + 1):
        rest = " ".join(typed[at:])
        off_grid, grid = (nearest(rest, grids) or (len(rest), "")) if rest else (0, "")
        for each, info in spelled.items():
            off = distance(" ".join(typed[:at]), each) + off_grid
            shown = " ".join(filter(None, [info.name, grids.get(grid, "")]))
            found[shown] = min(off, found.get(shown, off))
    most = max(1, len(" ".join(typed)) // 4)
    return [each for each in sorted(found, key=lambda shown: found[shown]) if found[each] <= most][:3]
