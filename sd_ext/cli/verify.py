"""`sd-ext verify`: draw a picture again, and say whether every pixel is the same, or what differs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..plain_files import PICTURE_BYTES, read_bytes
from .pictures import Record, read_record
from .plan import find_for
from .request import Run
from .voice import Voice

NAMES = {"weights": "weights", "table": "table", "encoded": "prompt", "versions": "versions", "kernels": "kernels"}
"""What is recorded -> what is said to differ, in that order."""


def verify(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture that sd-ext generate wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Draw a picture again and say "to the bit", or what differs: weights, table, prompt, versions, kernels."""
    record = read_record(picture)
    if "pixels" not in record.made:
        raise InputError(f"{picture} does not say which pixels were drawn, so there is nothing to compare with")
    source = find_for([record.recipe])
    voice = Voice(as_json=as_json)
    with voice.busy("Drawing it again"):
        from .silence import silence_torch

        silence_torch()
        made = _draw_again(record, source, trust_remote_code, voice)
    same = made["pixels"] == record.made.get("pixels")
    differs, kept = dict(differences(record.made, made)), _kept(picture, record)
    if as_json:
        print(json.dumps({"path": str(picture), "same": same, "differs": differs, "kept": kept}))
    else:
        for line in _told(picture, same, differs, kept):
            print(line)
    if not same or not kept:
        raise typer.Exit(1)


def _draw_again(record: Record, source: Any, trust_remote_code: bool, voice: Voice) -> dict[str, Any]:
    """Draw the picture of a record once more. Returns what is met then."""
    from .drawing import draw_again
    from .made import made_with, of_one
    from .prepare import prepare

    prepared = prepare([record.recipe], source, Run(trust_remote_code=trust_remote_code), voice.tell)
    drawn = draw_again(prepared.pipe, prepared.recipes[0], *record.company)
    return made_with(prepared.pipe, source, drawn.recipe) | of_one(drawn)


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, what differs) for each circumstance that was recorded and is another now."""
    for recorded, name in NAMES.items():
        before, after = was.get(recorded), now.get(recorded)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            if changed:
                yield name, ", ".join(f"{key} {before.get(key, 'none')} -> {after.get(key, 'none')}" for key in changed)
        elif before is not None and before != after:
            yield name, f"{before} -> {after}"


def _kept(path: Path, record: Record) -> bool:
    """Whether the file holds the pixels that were drawn, where its format keeps them exactly."""
    from PIL import Image

    from .made import pixels_of

    with Image.open(io.BytesIO(read_bytes(path, PICTURE_BYTES))) as stored:
        if stored.format == "JPEG":
            return True
        return stored.size == record.recipe.final_sides and pixels_of(stored) == record.made.get("pixels")


def _told(path: Path, same: bool, differs: Mapping[str, str], kept: bool) -> Iterator[str]:
    """The verdict in lines."""
    if same and kept:
        yield f"{path}: to the bit"
    elif not kept:
        yield f"{path}: its pixels are not those that were drawn; the file has been changed since"
    if not same:
        yield f"{path}: another picture"
        for name, what in differs.items():
            yield f"  {name}: {what}"
        if not differs:
            yield "  nothing that was recorded differs; kernels may add in another order from run to run"
    elif differs:
        for name, what in differs.items():
            yield f"  though it has other {name}: {what}"
