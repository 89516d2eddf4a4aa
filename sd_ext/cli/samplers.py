"""`sd-ext samplers`: list the samplers and timestep grids, or show the table of one."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .silence import silence_torch

if TYPE_CHECKING:
    from ..schedulers import SamplerInfo

WIDTH = 79  # columns
EXAMPLE = 'sd-ext samplers "dpm++ 2m karras" --steps 8'
NAME = 21  # columns of a name and what separates it from the rest


def samplers(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One sampler, whose table is shown.")] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Network calls of the table.")] = None,
    grid: Annotated[str | None, typer.Option(metavar="NAME", help="Where its steps fall. [its own]")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_ID", help="The model it is for. [Stable Diffusion's noise levels]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON, for other programs: the table (docs/interchange.md), or the list.")
    ] = False,
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only those whose names, source or note hold every word of it.")
    ] = None,
) -> None:
    """List the samplers and the timestep grids, or show the table of one."""
    if name is not None:
        _table(name, steps, grid, model, search, as_json)
        return
    for flag, value in {"--steps": steps, "--grid": grid, "--model": model}.items():
        if value is not None:
            raise InputError(f"{flag} is for the table of one sampler; name it, such as: {EXAMPLE}")
    silence_torch()
    import sd_ext

    words = (search or "").lower().split()
    known = [each for each in sd_ext.list_samplers() if _holds(words, each.name, described(each), each.cls.__name__)]
    grids = [each for each in sd_ext.list_grids() if _holds(words, each.name, each.description, *each.aliases)]
    if not known and not grids:
        raise InputError(f"no sampler or grid matches {search!r}; sd-ext samplers lists all")
    if as_json:
        told = [{"name": each.name, "description": each.description, "aliases": each.aliases} for each in grids]
        print(json.dumps({"samplers": [_as_json(each) for each in known], "grids": told}))
        return
    if known:
        print("SAMPLERS (order; network calls a step; fresh noise)")
        for each in known:
            print("\n".join(_wrapped(each.name, described(each))))
    if grids:
        print("\nGRIDS of timesteps" if known else "GRIDS of timesteps")
        for placed in grids:
            print("\n".join(_wrapped(placed.name, _with_others(placed.description, placed.aliases))))
    print('\nUse them as: sd-ext generate "red apple" --sampler NAME --grid NAME')


def _table(
    name: str, steps: int | None, grid: str | None, model: str | None, search: str | None, as_json: bool
) -> None:
    """Print the table of a sampler, for people or as JSON."""
    if search is not None:
        raise InputError("--search looks through the list; name a sampler or search, not both")
    if steps is None:
        raise InputError(f"--steps says how many network calls the table of {name!r} is for; try: {EXAMPLE}")
    from ..models import find_model

    config = None if model is None else find_model(model).config("scheduler")
    silence_torch()
    import sd_ext

    from ..schedulers.interchange import interchanged

    scheduler = sd_ext.make_scheduler(name, config, grid=grid)
    scheduler.set_timesteps(steps)
    made = interchanged(scheduler, sampler=f"{name} {grid}" if grid else name)
    if as_json:
        print(made.to_json())
        return
    print(made.table)
    if made.companion is not None:
        print("\nWhere the network gives no halves of its guided predictions:\n")
        print(made.companion)


def _as_json(info: SamplerInfo) -> dict[str, object]:
    """What is known of a sampler, for programs."""
    told = {"name": info.name, "class": info.cls.__name__, "order": info.order, "calls": info.calls}
    more = {"stochastic": info.stochastic, "aliases": info.aliases, "note": info.note, "source": info.source}
    return {**told, **more, "halves": info.cls.weighs_unconditional}


def described(info: SamplerInfo) -> str:
    """What is known of a sampler, in a line: order, calls and noise, other names, note, source."""
    order = f"order {info.order}" if info.order else "no order"
    calls = f"{info.calls} call{'s' if info.calls != '1' else ''}"
    facts = ", ".join([order, calls, *(["fresh noise"] if info.stochastic else [])])
    return "; ".join(filter(None, [_with_others(facts, info.aliases), info.note, info.source]))


def _with_others(text: str, aliases: Sequence[str]) -> str:
    return f"{text}; also {', '.join(aliases)}" if aliases else text


def _holds(words: Sequence[str], *texts: str) -> bool:
    """Whether every word occurs in the texts."""
    together = " ".join(texts).lower()
    return all(word in together for word in words)


def _wrapped(name: str, text: str) -> Iterator[str]:
    """A name and what stands beside it, in lines that fit into 80 columns."""
    start = name.ljust(NAME - 1) + " "
    yield from textwrap.wrap(start + text, WIDTH, subsequent_indent=" " * NAME, break_on_hyphens=False)
