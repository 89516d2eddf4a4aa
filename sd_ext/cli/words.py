"""`sd-ext words`: list or search what a model can draw."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import typer

from ..errors import InputError, printable
from ..models import EMBEDDED, find_model
from ..models.near import near
from ..models.words import FILE, SLOT, Meaning, Piece, Thing, Words, words_of
from . import checks

WIDTH = 79  # columns
INDENT = 12  # columns, before what stands behind a heading
ONE_OF = {
    "colours": "a colour", "numbers": "a number", "sizes": "a size", "styles": "a style", "grounds": "a ground",
    "positions": "where one thing is beside another",
}  # fmt: skip


def words(
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="A word, a prompt or a heading to look up.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Pipeline folder.", show_default="the embedded model")
    ] = None,
) -> None:
    """List what the model can draw: things, styles, colours, counts, grounds; or look words up."""
    searched = " ".join(text or [])
    if text is not None and not searched.strip():
        raise InputError("the text to look up is empty; leave it out to list all words")
    checks.check_text("text", searched)
    found = find_model(EMBEDDED if model is None else model)
    known = words_of(found)
    if known is None or not known.every_thing:
        raise InputError(f"{found.name} does not tell which words it knows: a pipeline folder with a {FILE} would")
    for line in looked_up(known, searched) if searched else listed(known):
        print(printable(line))


def listed(known: Words) -> Iterator[str]:
    """All that is known, under headings, in lines of at most 79 columns."""
    yield f"{len(known.every_thing)} things (in brackets: other names)"
    for kind, things in known.things.items():
        if things:
            yield from row(kind, map(shown_thing, things))
    for heading, content in sections(known).items():
        if content:
            yield ""
            yield from row(heading, content)
    yield ""
    yield f'Draw them as: sd-ext generate "{example(known)}"'


def sections(known: Words) -> dict[str, list[str]]:
    """What is listed beside the things: heading -> how it is said."""
    tables = {name: getattr(known, name) for name in ("styles", "colours", "numbers", "sizes")}
    made = {name: [_with_others(ways) for ways in table.values() if ways] for name, table in tables.items()}
    colour = next((colour for colour in known.colours if colour and colour[0] not in "aeiou"), "red")
    grounds = [SLOT.sub(colour, way) for ways in known.grounds.values() for way in ways]
    return {**made, "positions": list(known.positions), "grounds": grounds}


def row(heading: str, content: Iterable[str]) -> list[str]:
    """A heading and what stands behind it, wrapped. A thing and its other names stay together where they fit."""
    room = WIDTH - INDENT
    glued = ", ".join(each.replace(" ", "\0") if len(each) < room else each for each in content)
    start = heading.ljust(INDENT - 1) + " "
    lines = textwrap.wrap(glued, WIDTH, initial_indent=start, subsequent_indent=" " * INDENT, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def shown_thing(thing: Thing) -> str:
    return _with_others(thing.names)


def _with_others(ways: Sequence[str]) -> str:
    """The usual word and, in brackets, the others."""
    return f"{ways[0]} ({', '.join(ways[1:])})" if len(ways) > 1 else ways[0]


def example(known: Words) -> str:
    """A prompt of what is known."""
    first = [next((ways[0] for ways in table.values() if ways), "") for table in (known.styles, known.colours)]
    return " ".join(filter(None, (*first, known.every_thing[0].names[0])))


# ---- looking up ------------------------------------------------------------------------------------------------------


def looked_up(known: Words, text: str) -> Iterator[str]:
    """What each piece of a text is; of a heading, all that stands under it."""
    heading = text.strip().lower()
    under = [*map(shown_thing, known.things.get(heading, ())), *sections(known).get(heading, ())]
    if under:
        yield from row(heading, under)
        return
    seen = {piece.text: piece for piece in known.pieces(text)}
    if not seen:
        raise InputError(f"{text!r} holds no word to look up")
    for piece in seen.values():
        yield from wrapped(explained(known, piece))


def wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def explained(known: Words, piece: Piece) -> str:
    """A line that says what a piece is."""
    if not piece.meanings:
        close = near(known, piece.text)
        return f"{piece.text}: not known" + (f"; near: {', '.join(close)}" if close else "")
    return f"{piece.text}: " + "; ".join(_meaning(piece, meaning) for meaning in piece.meanings)


def _meaning(piece: Piece, meaning: Meaning) -> str:
    if meaning.thing:
        others = [other for other in meaning.thing.names if other != piece.text]
        return f"a thing ({meaning.what})" + (f", also {', '.join(others)}" if others else "")
    if not meaning.what:
        return "known" if meaning.name == piece.text else f"known beside {meaning.name}"
    return ONE_OF[meaning.what]
