"""Which known words are near one that is not known: by spelling, by the parts of a word, by the things' tags."""

from __future__ import annotations

from collections.abc import Iterator

from .words import Thing, Words, split

MOST = 3
ALIKE = 0.7  # of 1, from which on two spellings are near
LONGEST = 40  # letters of a word that is looked up
WORSE = 0.1  # what is so much less near than the nearest is left out
COUNTED = split("zero one two three four five six seven eight nine ten eleven twelve dozen hundred")


def near(words: Words, unknown: str) -> list[str]:
    """The usual names of up to three things, colours, styles and so on that are near a word, the nearest first.

    Args:
        words: what is known.
        unknown: one word, in lower case.
    """
    if len(unknown) > LONGEST:
        return []
    if unknown in COUNTED or unknown.isdigit():
        return [said[0] for said in words.numbers.values() if said]
    rated: dict[str, float] = {}
    for name, nearness in _rated(words, unknown):
        rated[name] = max(nearness, rated.get(name, 0))
    best = max(rated.values(), default=0)
    ranked = sorted((name for name in rated if rated[name] >= max(ALIKE, best - WORSE)), key=lambda n: -rated[n])
    return ranked[:MOST]


def _rated(words: Words, unknown: str) -> Iterator[tuple[str, float]]:
    """(usual name, nearness from 0 to 1) of everything that is known by name."""
    for thing in words.every_thing:
        called = [" ".join(split(name)) for name in (*thing.names, *thing.plurals)]
        yield thing.names[0], max(_by_tag(thing, unknown), *(_by_name(name, unknown) for name in called))
    for table in (words.colours, words.styles, words.sizes):
        for ways in table.values():
            yield from ((way, _spelled(way, unknown)) for way in ways)
    single = {word for phrases in words.grounds.values() for phrase in phrases for word in split(phrase)}
    yield from ((word, _spelled(word, unknown)) for word in sorted(single) if len(word) > 2)


def _spelled(known: str, unknown: str) -> float:
    """1 for the same letters; 0 where the lengths alone say that they are not alike."""
    short, long = sorted((len(known), len(unknown)))
    return 1 - distance(known, unknown) / long if short >= ALIKE * long else 0


def distance(one: str, other: str) -> int:
    """The fewest letters to put in, leave out, replace or exchange with their neighbour (Damerau 1964) between two."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, its in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (letter != its)))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], its):
                row[j] = min(row[j], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def _by_tag(thing: Thing, unknown: str) -> float:
    """Earlier tags say more of a thing: of a cat "pet" comes before "face"."""
    places = [place for place, tag in enumerate(thing.tags) if one_of(tag) == one_of(unknown)]
    return 0.9 - 0.02 * min(places[0], 5) if places else 0


def _by_name(name: str, unknown: str) -> float:
    """By spelling, or because one holds the other: a lighthouse is a house, a berry might be a strawberry."""
    parts = name.split()
    if unknown in parts:
        return 0.95 if len(unknown) > 2 else 0
    held = len(parts) == 1 and len(name) > 3 and name in unknown
    holds = len(unknown) > 3 and any(unknown in part for part in parts)
    compound = (0.88 if unknown.endswith(name) else 0.78) if held else 0.86 if holds else 0
    return max(_spelled(name, unknown), compound)


def one_of(word: str) -> str:
    """A word without the plural's s, as far as that is easily told."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
