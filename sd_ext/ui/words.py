"""The words that a model knows, as buttons which add them to the prompt."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ..errors import InputError
from ..models import find_model
from ..models.words import SLOT, Words, words_of

SHOWN = "styles", "colours", "numbers", "sizes", "positions"
EXAMPLES = 6


def words_for(source: str) -> Words | None:
    """The words of a model; None if it tells none, or cannot be read."""
    try:
        found = words_of(find_model(source))
    except InputError:
        return None
    return found if found is not None and found.every_thing else None


def as_buttons(words: Words | None) -> str:
    """HTML: every word a button, under headings. A model that tells no words gets a sentence.

    Args:
        words: of a stranger's file, maybe: everything is escaped.
    """
    if words is None:
        return '<p class="sd-none">This model does not tell which words it knows; say it in your own.</p>'
    colour = next((ways[0] for ways in words.colours.values() if ways), "red")
    rows = [(name, _first(getattr(words, name))) for name in SHOWN]
    rows += [("grounds", [SLOT.sub(colour, ways[0]) for ways in words.grounds.values() if ways])]
    rows += [(kind, [thing.names[0] for thing in things]) for kind, things in words.things.items()]
    return '<div class="sd-words">' + "".join(_row(name, texts) for name, texts in rows if texts) + "</div>"


def _first(table: object) -> list[str]:
    """The usual way to say each of a table's things; a list of phrases as it is."""
    if isinstance(table, dict):
        return [ways[0] for ways in table.values() if ways]
    return [str(phrase) for phrase in table] if isinstance(table, Iterable) else []


def _row(name: str, texts: Iterable[str]) -> str:
    buttons = "".join(f'<button type="button" data-word="{escape(text)}">{escape(text)}</button>' for text in texts)
    return f"<section><h4>{escape(name)}</h4><div>{buttons}</div></section>"
