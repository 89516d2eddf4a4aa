"""What no model is trained on (`held_out.toml`): the split of a picture is found here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sd_ext.declared import check
from sd_ext.errors import InputError
from sd_ext.reading import read_toml

DECLARED = Path(__file__).parent / "held_out.toml"
TRAIN, PAIRS, COMPOSITIONS, PHRASINGS, DRAWINGS, STYLE = (
    "train", "pairs", "compositions", "phrasings", "drawings", "style",
)  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """See the file.

    Args:
        pairs: (colour, concept).
        together: two concepts each.
        counted: (number, concept).
        phrasings: forms of captions of one thing.
        percent: of drawings.
    """

    pairs: frozenset[tuple[str, str]]
    together: frozenset[frozenset[str]]
    counted: frozenset[tuple[int, str]]
    phrasings: tuple[str, ...]
    percent: float

    def drawing(self, concept: str, set_name: str) -> bool:
        """Whether a set's drawings of a concept are held out: the same ones on every machine."""
        digest = hashlib.sha256(f"{concept}/{set_name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % 10_000 < 100 * self.percent

    def pair(self, colour: str, concept: str) -> bool:
        return (colour, concept) in self.pairs

    def composition(self, concepts: Iterable[str], count: int) -> bool:
        """Whether these things together, or so many of one thing, are held out."""
        named = frozenset(concepts)
        return named in self.together or any((count, name) in self.counted for name in named if len(named) == 1)


def read_held_out(path: Path = DECLARED) -> HeldOut:
    """What a file declares.

    Raises:
        InputError: it is not as `held_out.toml` is.
    """
    table, where = read_toml(path), str(path)
    parts = {name: table.get(name, {}) for name in ("pairs", "compositions", "phrasings", "drawings")}
    if strange := sorted(set(table) - set(parts)):
        raise InputError(f"{where}: [{strange[0]}] is none of {', '.join(parts)}")
    check(parts["pairs"], dict[str, list[str]], where, "pairs")
    check(parts["compositions"].get("together", []), list[list[str]], where, "compositions", "together")
    check(parts["compositions"].get("counted", {}), dict[str, list[str]], where, "compositions", "counted")
    check(parts["phrasings"].get("one", []), list[str], where, "phrasings", "one")
    percent = parts["drawings"].get("percent", 0.0)
    check(percent, float, where, "drawings", "percent")
    if not 0 <= percent < 50:
        raise InputError(f"{where}: drawings.percent is {percent}; it must be from 0 to below 50")
    counted = parts["compositions"].get("counted", {})
    if strange := [number for number in counted if not number.isdigit()]:
        raise InputError(f"{where}: compositions.counted has {strange[0]!r}, which is no number")
    return HeldOut(
        frozenset((colour, name) for colour, names in parts["pairs"].items() for name in names),
        frozenset(frozenset(pair) for pair in parts["compositions"].get("together", [])),
        frozenset((int(number), name) for number, names in counted.items() for name in names),
        tuple(parts["phrasings"].get("one", [])),
        percent,
    )
