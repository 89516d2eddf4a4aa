"""`sd-ext samplers`: list the samplers and timestep grids, or those that match a text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .silence import silence_torch

if TYPE_CHECKING:
    from ..schedulers import SamplerInfo

WIDTH = 79  # columns
NAME = 21  # columns of a name and what separates it from the rest


def samplers(
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only those whose names, source or note hold every word of it.")
    ] = None,
) -> None:
    """List the samplers and the timestep grids."""
    silence_torch()
    import sd_ext

    words = (search or "").lower().split()
    known = [each for each in sd_ext.list_samplers() if _holds(words, each.name, described(each), each.cls.__name__)]
    grids = [each for each in sd_ext.list_grids() if _holds(words, each.name, each.description, *each.aliases)]
    if not known and not grids:
        raise InputError(f"no sampler or grid matches {search!r}; sd-ext samplers lists all")
    if known:
        print("SAMPLERS (order; network calls a step; fresh noise)")
        for each in known:
            print("\n".join(_wrapped(each.name, described(each))))
    if grids:
        print("\nGRIDS of timesteps" if known else "GRIDS of timesteps")
        for grid in grids:
            print("\n".join(_wrapped(grid.name, _with_others(grid.description, grid.aliases))))
    print('\nUse them as: sd-ext generate "red apple" --sampler NAME --grid NAME')


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
