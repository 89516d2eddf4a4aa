"""`--region`: words for parts of a picture."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from .inputs.files import read_picture
from .request import Recipe


@contextlib.contextmanager
def regions_of(pipe: Any, recipe: Recipe) -> Iterator[None]:
    """Context manager: the pipeline draws a recipe's regions, if there are any. For errors see `sd_ext.regional`."""
    if not recipe.region:
        yield
        return
    from PIL import Image

    from ..unets import regional

    def where(region: Any) -> Any:
        return region.box or Image.open(io.BytesIO(read_picture("--region", region.mask)))

    with regional(pipe, [(where(region), region.prompt) for region in recipe.regions], base=recipe.region_base or 0.0):
        yield
