"""The pictures of a comparison: each in a file of its own, named by a digest of all that it depends on.

So a comparison that was stopped goes on, and one that shares settings with an earlier one in the same folder shares its
pictures. Each file says how it was made, as those of `sd-ext generate` do, and how long that took.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ... import __version__, whole
from ...errors import InputError
from ...models import Model
from ...models.calibrated import calibrated_config
from ..fitted import names_it
from ..inputs.files import pinned
from ..made import added_files
from ..pictures import Record, encode, read_record
from ..request import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "cells"
DIGITS = 16  # hexadecimal digits of a digest


@dataclass
class Store:
    """The pictures in a folder.

    Args:
        folder: where the comparison goes; the pictures lie in `cells` in it.
        place: device and dtype of a recipe, as they will be.
    """

    folder: Path
    place: Callable[[Recipe], tuple[str, str]]
    _weights: dict[str, dict[str, str]] = field(default_factory=dict)
    _files: dict[Path, str] = field(default_factory=dict)

    def path(self, recipe: Recipe, model: Model) -> Path:
        """Where the picture of a recipe lies, or will. It depends on the weights and not on where they lie."""
        device, dtype = self.place(recipe)
        told = replace(pinned(recipe), device=device, dtype=dtype).as_json()
        told |= {"weights": self._of_model(recipe.model, model), "software": __version__}
        if recipe.sampler is None or names_it(recipe.sampler):
            told["fitted"] = calibrated_config(model)
        told["files"] = {name: self._of_file(path) for name, path in added_files(recipe).items()}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:DIGITS]
        return self.folder / FOLDER / f"{digest}.png"

    def _of_model(self, name: str, model: Model) -> dict[str, str]:
        from ...models.digests import weight_digests

        if name not in self._weights:
            self._weights[name] = weight_digests(model)
        return self._weights[name]

    def _of_file(self, path: Path) -> str:
        from ...models.digests import quick_digest

        if path not in self._files:
            self._files[path] = quick_digest(path)
        return self._files[path]


def read(path: Path, tell: Callable[[str], object]) -> Record | None:
    """How a picture of the store was made; None if it is not there, or is damaged, which is said."""
    if not path.exists():
        return None
    try:
        return read_record(path)
    except InputError as error:
        tell(f"{error}; it is drawn anew.")
        return None


def write(path: Path, picture: Image, record: Record) -> None:
    """Write a picture of the store. Raises `WriteError`."""
    whole.write_bytes(path, encode(picture, record))


def open_cell(path: Path) -> Image:
    """The pixels of a picture, in RGB. Raises `InputError` if they cannot be read."""
    import io

    from PIL import Image

    from ...plain_files import PICTURE_BYTES, read_bytes

    try:
        with Image.open(io.BytesIO(read_bytes(path, PICTURE_BYTES))) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); remove it, and it is drawn anew") from None


def distance(one: Image, other: Image) -> float:
    """The root mean square of the difference of two pictures' pixels, as a share of the full range.

    Args:
        one, other: RGB, of one size.

    Returns:
        0 for the same picture, 1 for black and white.
    """
    import numpy as np

    a, b = (np.asarray(picture.convert("RGB"), np.float64) / 255 for picture in (one, other))
    return float(np.sqrt(np.mean((a - b) ** 2)))
