"""The contact sheet of several pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...sheets import WHITE, contact_sheet
from ..request import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 128, 256  # smallest and largest length, in pixels, of a picture's longer side


def sheet_of(recipes: Sequence[Recipe], thumbnails: Sequence[Image]) -> Image:
    """Arrange small copies of pictures, with prompt and seed as titles; the seeds of a prompt in one row.

    Args:
        recipes: how each was made.
        thumbnails: as `thumbnail` makes them.
    """
    prompts = {recipe.prompt for recipe in recipes}
    per_prompt = len(recipes) // len(prompts)
    wide = per_prompt if 1 < per_prompt < len(recipes) else math.ceil(math.sqrt(len(recipes)))
    titles = [f"{recipe.prompt} ({recipe.seed})" for recipe in recipes]
    return contact_sheet(thumbnails, wide, titles, gap=8, ground=WHITE)


def thumbnail(picture: Image) -> Image:
    """A copy for a contact sheet, 128 to 256 pixels on the longer side; small pictures are not smoothed."""
    from PIL import Image, ImageOps

    scale = math.ceil(CELL[0] / max(picture.size))
    if scale > 1:
        return ImageOps.scale(picture.convert("RGB"), scale, Image.Resampling.NEAREST)
    small = picture.convert("RGB")
    small.thumbnail((CELL[1], CELL[1]))
    return small
