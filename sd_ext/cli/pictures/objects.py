"""A text `parameters` that is a JSON object: SwarmUI's and Fooocus's. Both draw with ComfyUI's samplers.

{"sui_image_params": {"prompt": "red apple", "steps": 20, "cfgscale": 7, "sampler": "dpmpp_2m", ...}}
{"prompt": "red apple", "steps": 30, "resolution": "(1024, 1024)", "sampler": "dpmpp_2m_sde_gpu", ...}
{"Prompt": "red apple", "Resolution": "(1024, 1024)", "Guidance Scale": 4.0, ...}    Fooocus, before
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from ...reading import parse_json
from .comfyui import LIKE
from .graph import is_number, short
from .told import Told

SWARM, FOOOCUS = "SwarmUI", "Fooocus"
NAMES = {  # theirs, as `_plain` writes them -> names of a recipe
    "prompt": ("prompt", str), "negativeprompt": ("negative", str), "negative_prompt": ("negative", str),
    "seed": ("seed", int), "steps": ("steps", int), "cfgscale": ("guidance", float),
    "guidance_scale": ("guidance", float), "sampler": ("sampler", str), "scheduler": ("grid", str),
    "clip_skip": ("clip_skip", int),
}  # fmt: skip
GRIDS = {"align_your_steps": "ays_sdxl"}  # Fooocus draws with SDXL alone
SILENT = {
    "width", "height", "resolution", "aspectratio", "version", "swarm_version", "metadata_scheme", "full_prompt",
    "full_negative_prompt", "base_model_hash", "refiner_model_hash",
}  # fmt: skip
"""Names of what is taken in another way, or says nothing of the picture that others do not."""

EMPTY = ("", None, "None", [], {})  # values that change nothing


def read_object(text: str, where: str) -> dict[str, Any] | None:
    """A text as a JSON object.

    Args:
        text: the text `parameters`.
        where: the file, for messages.

    Returns:
        The object; None if it is none, but a prompt, which may begin with a brace too.

    Raises:
        InputError: it begins as an object does, and cannot be read.
    """
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        return parse_json(text, f"{where}: `parameters`", dict[str, Any])
    except InputError:
        if re.match(r'\{\s*"[^"]*"\s*:', text):
            raise
        return None


def parse(values: Mapping[str, Any], where: str) -> Told:
    """What the object says.

    Args:
        values: the object.
        where: the file, for messages.

    Returns:
        What is said, and by name what is not taken.

    Raises:
        InputError: it is of no program that is known here.
    """
    if isinstance(inner := values.get("sui_image_params"), dict):
        return _told(SWARM, inner)
    named = {_plain(name): value for name, value in values.items()}
    if {"prompt", "resolution"} <= set(named):
        return _told(FOOOCUS, named)
    names = short(", ".join(values)) or "none"
    raise InputError(f"{where} has a text `parameters` of a program that is not read here (a JSON object of {names})")


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _told(program: str, values: Mapping[str, Any]) -> Told:
    settings: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in values.items():
        ours, kind = NAMES.get(name, ("", str))
        taken = _as(value, kind) if ours else None
        if taken is not None:
            settings |= {ours: taken} if taken != "" else {}
        elif name not in SILENT and value not in EMPTY:
            dropped.append(f"{name} {short(value)}")
    size, unsized = _size(values)
    settings |= {"size": size} if size else {}
    if "sampler" in settings:
        settings["like"] = LIKE
        settings |= {"grid": GRIDS[grid]} if (grid := settings.get("grid")) in GRIDS and program == FOOOCUS else {}
    elif "grid" in settings:
        dropped.append(f"scheduler {settings.pop('grid')}")
    shown = {name: value for name, value in values.items() if value not in EMPTY}
    return Told(program, shown, settings, dropped + unsized)


def _as(value: Any, kind: type) -> Any:
    """A value as a setting's type, of which Fooocus writes some as text; None if it is of another."""
    if kind is str:
        return value if isinstance(value, str) else None
    try:
        made = float(value) if kind is float else int(str(value))
    except (ValueError, TypeError, OverflowError):
        return None
    return made if is_number(made) and not isinstance(value, bool) else None


def _size(values: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Width and height, as numbers or as "(1024, 1024)", as a setting; and what cannot be taken of them."""
    sides = [values.get("width"), values.get("height")]
    if all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        return f"{sides[0]}x{sides[1]}", []
    if found := re.fullmatch(r"\D{0,2}(\d{1,9})\D{1,3}(\d{1,9})\D?", str(values.get("resolution", ""))):
        return f"{found[1]}x{found[2]}", []
    names = ("width", "height", "resolution", "aspectratio")
    return "", [f"{name} {short(values[name])}" for name in names if name in values]
