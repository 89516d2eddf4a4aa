"""`--region`: words for parts of a picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .inputs.fit import open_upright
from .request import Recipe


@contextlib.contextmanager
def regions_of(pipe: Any, recipe: Recipe) -> Iterator[None]:
    """Context manager: the pipeline draws a recipe's regions, if there are any. For errors see `sd_ext.regional`."""
    if not recipe.region:
        yield
        return
    from ..unets import regional

    named = [(each.box or open_upright("--region", each.mask), each.prompt) for each in recipe.regions]
    with regional(pipe, named, base=recipe.region_base or 0.0):
        yield
