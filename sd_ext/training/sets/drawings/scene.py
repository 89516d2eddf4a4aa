"""What a picture shows: facts, from which it is painted and said, and by which a drawn picture can be judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd_ext.training.sets.drawings.book import Drawing
from sd_ext.training.sets.drawings.held_out import COMPOSITIONS, DRAWINGS, PAIRS, TRAIN, HeldOut

COLOURED = ("tint", "coloured")  # grounds whose colour is drawn


@dataclass(frozen=True)
class Scene:
    """A picture before it is painted.

    Args:
        shows: "one", "several", "two" or "alone".
        drawings: of what is seen, one of each thing.
        colours: in which each is drawn; "" as it is.
        number: how many of a single thing.
        style: as the sets have it, or "silhouette" or "pixels".
        ground: as in the grammar: "white", "coloured", "night", ...
        ground_colour: of "tint" and "coloured"; else "".
        size: "usual", "small" or "big".
        place: of two things: "beside", "above" or "apart"; else "".
    """

    shows: str
    drawings: tuple[Drawing, ...]
    colours: tuple[str, ...]
    number: int
    style: str
    ground: str
    ground_colour: str = ""
    size: str = "usual"
    place: str = ""

    @property
    def concepts(self) -> tuple[str, ...]:
        return tuple(drawing.concept for drawing in self.drawings)

    @property
    def seen_colours(self) -> tuple[str, ...]:
        """The colour each thing has, drawn so or turned; "" where none stands out."""
        return tuple(c or d.colour for c, d in zip(self.colours, self.drawings, strict=True))

    def split(self, held_out: HeldOut) -> str:
        """The split it belongs to, whatever is said about it."""
        if any(drawing.split == DRAWINGS for drawing in self.drawings):
            return DRAWINGS
        if any(map(held_out.pair, self.seen_colours, self.concepts)):
            return PAIRS
        return COMPOSITIONS if held_out.composition(self.concepts, self.number) else TRAIN

    def facts(self) -> dict[str, Any]:
        """What a line of `metadata.jsonl` says of it."""
        return {
            "shows": self.shows, "concepts": self.concepts, "colours": self.seen_colours, "number": self.number,
            "style": self.style, "ground": self.ground, "ground_colour": self.ground_colour, "place": self.place,
            "size": self.size, "sets": tuple(drawing.set for drawing in self.drawings),
        }  # fmt: skip
