"""Names as people type them: what counts as the same, and which known name is nearest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


def words(name: str) -> list[str]:
    """The words of a name in small letters, without the "k" that k-diffusion's names begin with in some programs."""
    found = re.sub(r"[\s_-]+", " ", str(name).lower()).split()
    return found[1:] if found[:1] == ["k"] and len(found) > 1 else found


def key(name: str) -> str:
    """A name without differences of case, and with single spaces for spaces, hyphens and underscores."""
    return _key(str(name))


@lru_cache(maxsize=4096)  # all names that are known are asked for each that is typed
def _key(name: str) -> str:
    return " ".join(words(name))


def distance(one: str, other: str) -> int:
    """The least number of letters to insert, leave out, change or swap with their neighbour, to turn one into other."""
    before, last = [], list(range(len(other) + 1))
    for i, a in enumerate(one):
        row = [i + 1]
        for j, b in enumerate(other):
            row.append(min(last[j] + (a != b), last[j + 1] + 1, row[j] + 1))
            if i and j and a == other[j - 1] and one[i - 1] == b:
                row[-1] = min(row[-1], before[j - 1] + 1)
        before, last = last, row
    return last[-1]


def nearest(typed: str, known: Iterable[str]) -> tuple[int, str] | None:
    """The known name at the least distance from what was typed, and the distance; of equal ones, the first."""
    return min(((distance(typed, each), each) for each in known), key=lambda found: found[0], default=None)
