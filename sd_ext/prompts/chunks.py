"""Cut a prompt's tokens into chunks that the text encoder reads one by one. Torch is not imported."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import InputError

BACK = 20
"""A comma among the last so many tokens of a full chunk ends it: what follows the comma goes to the next chunk."""

Unit = Sequence[Hashable]
"""What stays together: a token, or all the tokens of a word that was learned."""


@dataclass
class Chunk:
    """Tokens that are read together, without those for begin, end and padding, and the weight of each."""

    tokens: list[Hashable] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def weighted(self) -> bool:
        """Whether a weight is not 1."""
        return any(weight != 1 for weight in self.weights)


class _Cutter:
    """The chunks made so far, and the one that is being filled."""

    def __init__(self, length: int, comma: Hashable):
        self.length, self.comma = length, comma
        self.done: list[Chunk] = []
        self.start()

    def start(self) -> None:
        self.chunk, self.after_comma = Chunk(), 0  # where the text after the last comma begins; 0: no comma

    def finish(self) -> None:
        self.done.append(self.chunk)
        self.start()

    def move_break(self) -> None:
        """If a comma is near the end of the chunk, which is full, end it there and begin the next with the rest."""
        kept, at = self.chunk, self.after_comma
        if not at or self.length - (at - 1) > BACK:
            return
        rest = Chunk(kept.tokens[at:], kept.weights[at:])
        del kept.tokens[at:], kept.weights[at:]
        self.finish()
        self.chunk = rest

    def add(self, unit: Unit, weight: float) -> None:
        is_comma = self.comma is not None and tuple(unit) == (self.comma,)
        if len(unit) > self.length:
            raise InputError(f"a word of {len(unit)} tokens does not fit this text encoder, which reads {self.length}")
        if len(self.chunk.tokens) == self.length and not is_comma:
            self.move_break()
        if len(self.chunk.tokens) + len(unit) > self.length:
            self.finish()
        self.chunk.tokens += unit
        self.chunk.weights += [weight] * len(unit)
        if is_comma:
            self.after_comma = len(self.chunk.tokens)


def cut(sections: Iterable[Iterable[tuple[Unit, float]]], length: int, comma: Hashable = None) -> list[Chunk]:
    """Cut tokens into chunks.

    Args:
        sections: between BREAKs; each gives (unit, weight).
        length: how many tokens a chunk holds: the encoder's, without those for begin and end.
        comma: the token of a comma; None if there is none.

    Returns:
        At least one chunk; a section begins a new one, even if it is empty and another follows.

    Raises:
        InputError: a unit is longer than a chunk.
    """
    cutter = _Cutter(length, comma)
    for number, section in enumerate(sections):
        if number:
            cutter.finish()
        for unit, weight in section:
            cutter.add(unit, weight)
    if cutter.chunk.tokens or not cutter.done:
        cutter.finish()
    return cutter.done
