"""Writes a caption beside each picture of a folder that has none. What is there already is never overwritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from sd_ext import whole
from sd_ext.errors import InputError, TakenError, printable
from sd_ext.training.captioner.models import Captioner
from sd_ext.training.data.folders import metadata_files
from sd_ext.training.data.images import UNREADABLE, on_white, open_picture
from sd_ext.training.data.items import FileReader
from sd_ext.training.data.walk import CAPTION_ENDINGS, Beside, Walk, walk


def write_captions(data: str, load: Callable[[], Captioner], ending: str, at_once: int) -> Iterator[str]:
    """Caption the pictures of a folder that have no caption yet. If it is stopped, the same call goes on.

    Args:
        data: a folder without metadata.
        load: loads the model; called if there is anything to do.
        ending: of the files that are written, ".txt" or ".caption".
        at_once: how many pictures the model sees at once.

    Yields:
        Lines about what was done: pictures that were left out, and why; at last the numbers.

    Raises:
        InputError: no such folder, it has metadata, holds no pictures, or another ending.
        ModelError: see `load`.
        WriteError: a caption cannot be written. Those written before stay.
    """
    folder = Path(data).expanduser()
    found = open_folder(folder, ending)
    places = caption_files(found, ending)
    written, had = 0, len(found.pictures) - len(places)
    left_out: dict[str, str] = {found.name(path): reason for path, reason in found.closed.items()}
    if places:
        captioner, batch = load(), list(places.items())
        console = Console(stderr=True)
        parts = [batch[i : i + at_once] for i in range(0, len(batch), at_once)]
        for part in track(parts, "captions", console=console, transient=True, disable=not console.is_terminal):
            opened = {place: seen for path, place in part if (seen := opened_or_not(path, folder, found, left_out))}
            names = {place: found.name(path) for path, place in part}
            for place, text in zip(opened, captioner(list(opened.values())) if opened else (), strict=True):
                if not text.strip():
                    left_out[names[place]] = "the model says nothing"
                    continue
                try:
                    with whole.file(place, overwrite=False) as new:
                        new.write_text(f"{text.strip()}\n", encoding="utf-8")
                    written += 1
                except TakenError:  # another process was faster
                    had += 1
    yield from (printable(f"{name}: left out: {why}") for name, why in left_out.items())
    yield f"{written} captions written, {had} pictures had one, {len(left_out)} left out"


def open_folder(folder: Path, ending: str) -> Walk:
    """List a folder whose pictures can be captioned.

    Raises:
        InputError: see `write_captions`.
    """
    if ending not in CAPTION_ENDINGS:
        raise InputError(f"captions are in files that end in {' or '.join(CAPTION_ENDINGS)}, not {ending!r}")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; captions are written beside pictures, so name a folder of them")
    if there := metadata_files(folder):
        raise InputError(
            f"the captions of {folder} are in {there[0][0].name}, and files beside pictures would not be read; "
            "remove it first"
        )
    found = walk(folder)
    if not found.pictures:
        raise InputError(f"{folder} holds no pictures")
    return found


def caption_files(found: Walk, ending: str) -> dict[Path, Path]:
    """The file for the caption of each picture that has none: `a.txt`, or `a.png.txt` where there is an `a.jpg` too."""
    beside = Beside(found.files)
    stems = Counter((path.parent, path.stem) for path in found.pictures)
    without = [path for path in found.pictures if not beside.caption(path)]
    return {
        path: path.with_name((path.stem if stems[path.parent, path.stem] == 1 else path.name) + ending)
        for path in without
    }


def opened_or_not(path: Path, folder: Path, found: Walk, left_out: dict[str, str]) -> Image.Image | None:
    """A picture in RGB; None if it cannot be used, with the reason in `left_out`."""
    try:
        return on_white(open_picture(FileReader(path, within=folder)()))
    except (InputError, *UNREADABLE) as error:
        left_out[found.name(path)] = str(error)
        return None
