"""Read what a picture's file says about its making, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ...plain_files import open_file, why_not
from . import a1111, comfyui, exif, png
from .record import KEY, Record
from .told import Told


def is_picture(path: Path) -> bool:
    """Whether a file begins as a PNG, JPEG or WebP. Raises `InputError` if it cannot be opened."""
    if reason := why_not(path):
        there = f"{path} cannot be read as a picture: it {reason}"
        raise InputError(f"no such picture: {path}" if reason == "is not there" else there)
    with open_file(path) as file:
        start = file.read(12)
    return start.startswith((png.SIGNATURE, exif.JPEG)) or (start[:4], start[8:]) == (exif.RIFF, exif.WEBP)


def read_told(path: Path) -> Told:
    """Read how a picture was made, by this or another program.

    Args:
        path: a PNG, JPEG or WebP.

    Raises:
        InputError: the file is no picture, is damaged, or says nothing that is understood here.
    """
    if not is_picture(path):
        raise InputError(f"{path} cannot be read as a picture (it is no PNG, JPEG or WebP)")
    with open_file(path) as file:
        is_png = file.read(8) == png.SIGNATURE
    texts = png.read_png_texts(path) if is_png else exif.read_exif_texts(path)
    if KEY in texts:
        record = Record.parse(texts[KEY], str(path))
        recipe = record.recipe.as_json()
        return Told(
            "sd_ext", {**recipe, **{k: v for k, v in record.made.items() if k not in recipe}}, recipe, (), record
        )
    if texts.get("parameters", "").strip():
        return a1111.parse(texts["parameters"])
    if "prompt" in texts:
        return comfyui.parse(texts["prompt"], str(path))
    raise InputError(f"{path} does not say how it was made")


def read_record(path: Path) -> Record:
    """Read the record of a picture of `sd-ext generate`.

    Args:
        path: the picture.

    Raises:
        InputError: see `read_told`; also if another program made it.
    """
    told = read_told(path)
    if told.record is None:
        raise InputError(f"{path} was made by {told.program}, which does not say all that it depends on; try --from")
    return told.record
