"""`Recipe`: everything that a picture depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from ...declared import Wide, check
from ...errors import InputError
from .inputs import Inputs
from .machine import Machine
from .model import Weights
from .sampling import Sampling
from .words import Words

WIDE = {"seed": Wide}
"""Fields whose whole numbers are larger than others: ComfyUI draws seeds of 64 bits."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Machine, Inputs, Sampling, Weights, Words):  # fields come in the reverse order
    """Everything that a picture depends on, as the options that make it again.

    None stands for what the model or the sampler decides. A recipe of a picture that was drawn names guidance, size,
    device and dtype as they were.
    """

    def check(self) -> None:
        """Raise `InputError` for a value that cannot work, as far as can be told without the model."""
        for group in (Words, Weights, Sampling, Machine):
            group.check(self)
        self.check_inputs(self.steps)

    @property
    def final_sides(self) -> tuple[int, int]:
        """Width and height in pixels of the picture as it is written: `sides`, enlarged if --upscale says so."""
        width, height = (round(side * (self.upscale or 1) / 8) * 8 for side in self.sides)
        return width, height

    def as_json(self) -> dict[str, Any]:
        """The values, by their names, without those that are None, empty or off."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, "", ()) and value is not False}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Recipe:
        """The recipe that `as_json` described.

        Args:
            values: as read from a picture.
            where: the file, for messages.

        Raises:
            InputError: a value is of another type or cannot work, the prompt is missing, or a name is unknown.
        """
        kinds = get_type_hints(cls) | WIDE
        names = {field.name for field in fields(cls)}
        for name, value in values.items():
            if name not in names:
                raise InputError(f"{where} was made with a setting that this version does not know: {name}")
            check(value, kinds[name], where, name)
        if "prompt" not in values:
            raise InputError(f"{where} does not say what it was drawn from: it has no prompt")
        try:
            settings: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
            made = cls(**settings)
            made.check()
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return made
