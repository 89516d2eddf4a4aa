"""What can be drawn (`concepts.toml`), and how English speaks of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sd_ext.declared import check
from sd_ext.errors import InputError
from sd_ext.reading import read_toml

DECLARED = Path(__file__).parent / "concepts.toml"


@dataclass(frozen=True)
class Concept:
    """A thing that can be drawn.

    Args:
        name: the first of its names.
        names: all of them.
        kind: "animals", "food", ...
        emoji: characters whose drawings show it.
    """

    name: str
    names: tuple[str, ...]
    kind: str
    emoji: tuple[str, ...]


def read_concepts(path: Path = DECLARED) -> list[Concept]:
    """The concepts of a file, in its order.

    Raises:
        InputError: a name or a character that stands twice, or nothing to draw.
    """
    table = read_toml(path)
    check(table, dict[str, dict[str, str]], str(path))
    made, taken = [], set()
    for kind, entries in table.items():
        for key, drawn in entries.items():
            names, emoji = tuple(n.strip() for n in key.split(",")), tuple(drawn.split())
            if not all(names) or not emoji:
                raise InputError(f"{path}, {kind}: {key!r} = {drawn!r} needs names and at least one emoji")
            if twice := taken & {*names, *emoji}:
                raise InputError(f"{path}, {kind}: {min(twice)!r} stands twice; keep one")
            taken |= {*names, *emoji}
            made.append(Concept(names[0], names, kind, emoji))
    return made


@dataclass(frozen=True)
class English:
    """What the rules of English do not say: see `grammar.toml`.

    Args:
        plurals: irregular ones of words.
        several: names that are plurals already ("grapes"): no "a", no number.
        substance: names of what is not counted ("bread"): "some bread".
        vowel, consonant: words that begin with the sound of one, against their letter.
    """

    plurals: dict[str, str]
    several: tuple[str, ...]
    substance: tuple[str, ...]
    vowel: tuple[str, ...]
    consonant: tuple[str, ...]

    def counted(self, name: str) -> bool:
        """Whether there can be two of them."""
        return name not in self.several and name not in self.substance

    def article(self, words: str, name: str) -> str:
        """`words`, which end in `name`, with the indefinite article: "an apple", "a red apple", "some grapes"."""
        if not self.counted(name):
            return f"some {words}"
        first = words.split()[0]
        vowel = first in self.vowel or (words[0] in "aeiou" and first not in self.consonant)
        return f"{'an' if vowel else 'a'} {words}"

    def plural(self, name: str) -> str:
        """The plural of a name: of its last word, or as `plurals` says."""
        if not self.counted(name):
            return name
        if name in self.plurals:
            return self.plurals[name]
        *before, last = name.split()
        return " ".join([*before, self._plural(last)])

    def _plural(self, word: str) -> str:
        if word in self.plurals:
            return self.plurals[word]
        if word.endswith(("s", "x", "z", "ch", "sh")):
            return word + "es"
        if word.endswith("y") and word[-2:-1] not in ("a", "e", "o", "u"):
            return word[:-1] + "ies"
        return word + "s"
