"""What a model answers to: `words.json` of a pipeline folder, and what of a prompt stands in it.

    {"guidance": 3.0,
     "things": {"animals": [{"names": ["cat", "kitty"], "plurals": ["cats", "kitties"], "tags": ["pet"]}]},
     "styles": {"flat": ["flat", "flat design"]},   "colours": {"grey": ["grey", "gray"]},
     "numbers": {"2": ["two", "2"]},                "sizes": {"small": ["small", "tiny"]},
     "positions": ["next to"],                      "grounds": {"coloured": ["on a {colour} background"]},
     "forms": ["a photo of"]}

The recipes that train a model on drawings write it. Any pipeline folder may have one; a model without it answers to
whatever its captions were, and nobody is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..declared import make, shown
from ..errors import InputError, ModelError
from ..plain_files import MIB
from ..reading import read_json
from .folder import Folder
from .model import Model

FILE = "words.json"
LONGEST = 12  # words of a name or a way to say something
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[\u2190-\u2bff\U0001f000-\U0001faff]")  # words, and characters like 🐱
SLOT = re.compile(r"\{\w+\}")
EMPTY = frozenset(
    WORD.findall(
        "a an the and or of in on at to for from with by as is are it its this that these there my your our some any "
        "one single me i you he she we they can could please draw show make give want would like"
    )
)  # words of every prompt that name nothing to see


@dataclass(frozen=True)
class Thing:
    """A thing that the model can draw.

    Args:
        names: what it is called; the first is the usual one.
        plurals: the same for several, in the same order.
        tags: words that have to do with it. The model knows them beside the name at most.
    """

    names: tuple[str, ...]
    plurals: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Meaning:
    """What a known piece of a prompt is.

    Args:
        what: "animals", "colours", ...; "" for a word that joins others.
        name: the usual name for it.
        thing: the thing, if it is one.
    """

    what: str
    name: str
    thing: Thing | None = None


@dataclass(frozen=True)
class Piece:
    """One or more words of a prompt, as typed but in lower case, and what they mean; nothing if they are not known."""

    text: str
    meanings: tuple[Meaning, ...]


@dataclass(frozen=True)
class Words:
    """The content of `words.json`, which see. Each table may be missing.

    Args:
        guidance: the guidance scale at which the model draws best; None if the file does not say.
        things: by kind ("animals").
        styles, colours, numbers, sizes, grounds: usual name -> the ways to say it; {colour} stands for any colour.
        positions: how two things may stand to each other.
        forms: other words that captions were made of.
    """

    guidance: float | None = None
    things: dict[str, list[Thing]] = field(default_factory=dict)
    styles: dict[str, list[str]] = field(default_factory=dict)
    colours: dict[str, list[str]] = field(default_factory=dict)
    numbers: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, list[str]] = field(default_factory=dict)
    positions: tuple[str, ...] = ()
    grounds: dict[str, list[str]] = field(default_factory=dict)
    forms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.guidance is not None and not 0 < self.guidance <= 100:
            raise InputError(f"guidance is {self.guidance:g}; it must be above 0, and 100 at most")

    @property
    def every_thing(self) -> list[Thing]:
        """The things of all kinds."""
        return [thing for things in self.things.values() for thing in things]

    @cached_property
    def said(self) -> dict[tuple[str, ...], tuple[Meaning, ...]]:
        """Everything that is known: its words -> what they mean."""
        made: dict[tuple[str, ...], dict[Meaning, None]] = {}
        for phrase, meaning in self._known():
            whole = tuple(split(phrase))
            if whole and not (SLOT.search(phrase) and meaning.what) and (meaning.what or whole not in made):
                made.setdefault(whole, {})[meaning] = None
        return {words: tuple(meanings) for words, meanings in made.items()}

    def _known(self) -> Iterator[tuple[str, Meaning]]:
        for kind, things in self.things.items():
            for thing in things:
                meaning = Meaning(kind, thing.names[0], thing)
                yield from ((name, meaning) for name in (*thing.names, *thing.plurals))
        tables = ("colours", "numbers", "sizes", "styles", "grounds")
        named = [(what, n, p) for what in tables for n, all_ in getattr(self, what).items() for p in all_]
        named += [("positions", phrase, phrase) for phrase in self.positions]
        yield from ((phrase, Meaning(what, name)) for what, name, phrase in named)
        for phrase in (*(phrase for _, _, phrase in named), *self.forms):
            yield from ((word, Meaning("", word)) for word in split(phrase))

    def pieces(self, text: str) -> list[Piece]:
        """A prompt, divided into what is known, the longest first, and single words that are not.

        Tags of a thing that the prompt names count as known: captions were given them so.
        """
        words, found, place = split(text), [], 0
        longest = min(LONGEST, max(map(len, self.said), default=1))
        while place < len(words):
            ends = range(min(len(words), place + longest), place, -1)
            end = next((end for end in ends if tuple(words[place:end]) in self.said), place + 1)
            key = tuple(words[place:end])
            known = self.said.get(key, (Meaning("", key[0]),) if key[0] in EMPTY else ())
            found.append(Piece(" ".join(key), known))
            place = end
        things = [meaning.thing for piece in found for meaning in piece.meanings if meaning.thing]
        tags = {word: thing.names[0] for thing in things for tag in thing.tags for word in split(tag)}
        return [Piece(p.text, p.meanings or _as_tag(p.text, tags)) for p in found]


def _as_tag(text: str, tags: dict[str, str]) -> tuple[Meaning, ...]:
    return (Meaning("", tags[text]),) if text in tags else ()


def split(text: str) -> list[str]:
    """The words of a text in lower case: no punctuation, "t-shirt" as two, "cat's" as "cat"."""
    return [re.sub(r"['’]s$", "", word) for word in WORD.findall(SLOT.sub(" ", text.lower()))]


def read_words(folder: Path) -> Words | None:
    """What the `words.json` of a pipeline folder says; None if it has none.

    Raises:
        ModelError: the file is damaged; names the place.
    """
    path = folder / FILE
    return _parsed(path, path.stat().st_mtime_ns) if path.exists() else None


@lru_cache(maxsize=4)
def _parsed(path: Path, written: int) -> Words:
    """What a `words.json` says; kept as long as the file is as it was when it was `written` (nanoseconds)."""
    data = read_json(path, dict[str, Any], limit=MIB, error=ModelError)
    told = make(Words, data, str(path), error=ModelError)
    things = {
        kind: [make(Thing, each, str(path), "things", kind, error=ModelError) for each in entries]
        for kind, entries in data.get("things", {}).items()
    }
    if any(not thing.names for entries in things.values() for thing in entries):
        raise ModelError(f"{path}: things has an entry without a name")
    told = replace(told, things=things)
    if long := next((words for words in told.said if len(words) > LONGEST), None):
        raise ModelError(f"{path}: {shown(' '.join(long))} has more than {LONGEST} words")
    return told


def words_of(model: Model) -> Words | None:
    """What a model says of its words; None for those that say nothing, and for models on the Hub.

    Raises:
        ModelError: see `read_words`.
    """
    return read_words(model.root) if isinstance(model, Folder) else None
