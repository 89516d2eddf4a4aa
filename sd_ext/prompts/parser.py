"""The grammar of prompts: which words weigh how much, and where a new chunk begins. See docs/prompts.md.

    (red)       weighs 1.1 times as much        (red:1.3)   1.3 times
    [red]       weighs 1.1 times less           BREAK       what follows begins a new chunk
    \\( \\) \\[ \\] \\\\   the character itself

Brackets nest, and their factors multiply. A bracket that is never closed reaches to the end of the prompt; one that was
never opened is a character like others. Torch is not imported.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import InputError

STRONGER, WEAKER = 1.1, 1 / 1.1

_WORD = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])             # a character that would mean something else
  | \\                                    # a backslash before anything else, which is dropped
  | :\s*(?P<weight>[+-]?[.\d]+)\s*\)      # the weight and end of a bracket
  | [()\[\]:]
  | [^\\()\[\]:]+
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")

_UNREAD = {
    r"<(?:lora|lyco|hypernet):[^<>]*>": "names a file in A1111; here these are words: give --lora FILE:STRENGTH",
    r"\[[^\[\]]*:\s*[\d.]+\s*\]": "changes the prompt between steps in A1111; here these are words that weigh less",
    r"\[[^\[\]]*\|[^\[\]]*\]": "takes turns between steps in A1111; here these are words that weigh less",
    r"\bAND\b": "joins two prompts in A1111; here it is a word",
}
"""Pattern -> what else it means in AUTOMATIC1111. None of it is supported."""


class Run(NamedTuple):
    """Text whose words have one weight; 1 is usual."""

    text: str
    weight: float


class _Piece:
    """A piece of text and the product of its brackets' factors; the text None is a BREAK."""

    def __init__(self, text: str | None):
        self.text, self.weight = text, 1.0


def parse(prompt: str) -> list[list[Run]]:
    """Parse a prompt.

    Args:
        prompt: as the user wrote it.

    Returns:
        The sections between BREAKs, at least one; each is a list of runs, no two neighbours of one weight.

    Raises:
        InputError: a weight such as `1.2.3` is no number.
    """
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where brackets were opened that are not closed yet

    def close(kind: str, factor: float) -> None:
        for piece in pieces[opened[kind].pop() :]:
            piece.weight *= factor

    for found in _WORD.finditer(prompt):
        text, weight = found[0], found["weight"]
        if found["escaped"]:
            pieces.append(_Piece(found["escaped"]))
        elif text == "\\":
            continue
        elif text in opened:
            opened[text].append(len(pieces))
        elif weight and opened["("]:
            close("(", _number(weight, prompt, found.start()))
        elif text == ")" and opened["("]:
            close("(", STRONGER)
        elif text == "]" and opened["["]:
            close("[", WEAKER)
        else:
            first, *others = _BREAK.split(text)
            pieces += [_Piece(first), *(_Piece(each) for other in others for each in (None, other))]
    for kind, factor in (("(", STRONGER), ("[", WEAKER)):
        while opened[kind]:
            close(kind, factor)
    return _sections(pieces)


def _number(weight: str, prompt: str, place: int) -> float:
    try:
        return float(weight)
    except ValueError:
        near = prompt[max(0, place - 20) : place + len(weight) + 2]
        raise InputError(f"the weight {weight} in …{near}… is no number; write (words:1.3)") from None


def _sections(pieces: list[_Piece]) -> list[list[Run]]:
    sections: list[list[Run]] = [[]]
    for piece in pieces:
        runs = sections[-1]
        if piece.text is None:
            sections.append([])
        elif runs and runs[-1].weight == piece.weight:
            runs[-1] = Run(runs[-1].text + piece.text, piece.weight)
        elif piece.text:
            runs.append(Run(piece.text, piece.weight))
    return sections


def unread(prompt: str) -> list[str]:
    """What in a prompt means something in AUTOMATIC1111 that is not done here: one sentence for each kind found."""
    found = ((re.search(pattern, prompt), meaning) for pattern, meaning in _UNREAD.items())
    return [f"{match[0]} {meaning}" for match, meaning in found if match]
