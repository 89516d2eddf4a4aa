"""`Record`: what is kept in a picture about its making, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...declared import check
from ...errors import InputError
from ...reading import parse_json
from ..request import Recipe

KEY = "sd_ext"  # of the text that holds the record
MOST_AT_ONCE = 64  # pictures in a batch that a record is believed


@dataclass(frozen=True)
class Record:
    """The recipe of a picture, and what was met when it was drawn.

    Args:
        recipe: the options that make it again.
        made: circumstances by name, such as "software" or "scheduler"; none of them is needed to make it again.
    """

    recipe: Recipe
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def company(self) -> tuple[int, int]:
        """How many pictures were drawn at once, and its place among them, from 0."""
        batch, place = self.made.get("batch", 1), self.made.get("place", 0)
        fits = type(batch) is type(place) is int and 0 <= place < batch <= MOST_AT_ONCE
        return (batch, place) if fits else (1, 0)

    def as_json(self) -> dict[str, Any]:
        """What is stored: recipe and circumstances."""
        return {"recipe": self.recipe.as_json(), "made": dict(self.made)}

    def text(self) -> str:
        """As JSON."""
        return json.dumps(self.as_json(), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str, where: str) -> Record:
        """The record that `text` holds.

        Args:
            text: JSON.
            where: the file, for messages.

        Raises:
            InputError: it is no record, or one that this version cannot follow.
        """
        try:
            values = parse_json(text, where)
        except InputError as error:
            raise InputError(f"{where} does not say how it was made: {error}") from None
        check(values, dict[str, Any], where)
        recipe, made = values.get("recipe", {}), values.get("made", {})
        check(recipe, dict[str, Any], where, "recipe")
        check(made, dict[str, Any], where, "made")
        return cls(Recipe.from_json(recipe, where), made)
