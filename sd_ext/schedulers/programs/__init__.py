"""The names and habits of other programs: a table for each, in a TOML file of its name.

    title = "ComfyUI"
    names = ["comfy"]                  other names of the program
    based_on = "a1111"                 a program whose tables this one's go on from
    grid = "normal"                    where the user chooses none

    [grids]                            what the program calls a grid -> ours, or options of our schedulers
    "Uniform" = "normal"
    "KL Optimal" = { grid = "kl_optimal", final_sigmas_type = "sigma_min" }
    "default" = {}                     the spacing that the model's config has

    [samplers]                         what the program calls a sampler -> what it does with it
    "DPM2" = { grid = "Karras", discard_penultimate_sigma = true }
    "UniPC" = { sampler = "unipc 3 bh1" }     it is this one of ours
    "DPM adaptive" = { refused = "why it cannot be had here" }

Of a sampler `grid` is the program's name of the grid it takes when the user chooses none; other entries are options of
our schedulers. How the lists were checked is told in docs/grids.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any

from ...errors import UnknownNameError
from ...reading import read_toml
from ..spelling import key

Entry = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Program:
    """What a program calls things, and what it does by itself.

    Args:
        name: of its table.
        title: of the program.
        grid: its grid, by its own name, where neither the user nor the sampler has one.
        grids: its names of grids -> options of our schedulers.
        samplers: its names of samplers -> `sampler` (ours), `grid` (its name) and options; or `refused`.
        names: other names of the program.
    """

    name: str
    title: str
    grid: str
    grids: Mapping[str, Entry] = field(default_factory=dict)
    samplers: Mapping[str, Entry] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def grid_options(self, name: str) -> dict[str, Any] | None:
        """Options of our schedulers for a grid as the program calls it; None for a name that it does not have."""
        found = self.grids.get(key(name))
        return None if found is None else dict(found)


def _load(name: str) -> Program:
    with as_file(files(__name__).joinpath(f"{name}.toml")) as path:
        table = read_toml(path)
    base = _load(table["based_on"]) if "based_on" in table else None
    grids = {key(each): {"grid": told} if isinstance(told, str) else told for each, told in table["grids"].items()}
    samplers = {key(each): told for each, told in table["samplers"].items()}
    if base is not None:
        grids, samplers = {**base.grids, **grids}, {**base.samplers, **samplers}
    return Program(name, table["title"], table["grid"], grids, samplers, tuple(table.get("names", ())))


@lru_cache(maxsize=1)
def programs() -> dict[str, Program]:
    """Every program by the name of its table."""
    found = sorted(each.name[:-5] for each in files(__name__).iterdir() if each.name.endswith(".toml"))
    return {name: _load(name) for name in found}


def get_program(name: str) -> Program:
    """A program by any of its names.

    Raises:
        UnknownNameError: naming the programs there are.
    """
    known = {key(each): program for program in programs().values() for each in (program.name, *program.names)}
    if key(name) not in known:
        raise UnknownNameError("program", name, programs())
    return known[key(name)]
