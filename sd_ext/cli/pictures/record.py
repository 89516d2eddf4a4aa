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


@dataclass(frozen=True)
class Record:
    """The recipe of a picture, and what was met when it was drawn.

    Args:
        recipe: the options that make it again.
        made: circumstances by name, such as "software" or "scheduler"; none of them is needed to make it again.
    """

    recipe: Recipe
    made: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"recipe": self.recipe.as_json(), "made": dict(self.made)}, ensure_ascii=False)

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
