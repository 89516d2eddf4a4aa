"""Read what a picture's file says about its making, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import InputError
from ...plain_files import open_file, why_not
from . import a1111, comfyui, exif, objects, png
from .record import KEY, Record
from .told import Told

NOT_READ = {  # texts -> the program that writes them
    "invokeai_metadata": "InvokeAI", "invokeai_graph": "InvokeAI", "sd-metadata": "InvokeAI", "Dream": "InvokeAI",
    "num_inference_steps": "Easy Diffusion",
}  # fmt: skip


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
    return _of_others(texts, str(path))


def _of_others(texts: Mapping[str, str], where: str) -> Told:
    """What another program wrote. Raises `InputError` if it is of none that is read here."""
    if (parameters := texts.get("parameters", "")).strip():
        values = objects.read_object(parameters, where)
        return a1111.parse(parameters) if values is None else objects.parse(values, where)
    if texts.get("prompt", "").lstrip().startswith("{"):
        return comfyui.parse(texts["prompt"], where)
    if program := next((program for name, program in NOT_READ.items() if name in texts), None):
        raise InputError(f"{where} was made by {program}, whose texts are not read here")
    if texts.get("Software") == "NovelAI":
        raise InputError(f"{where} was made by NovelAI, whose texts are not read here")
    if "prompt" in texts:
        raise InputError(
            f"{where} has a text `prompt` that is no graph of ComfyUI, and other programs' is not read here"
        )
    raise InputError(f"{where} does not say how it was made")


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
