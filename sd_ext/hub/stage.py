"""Put together exactly the files that would be published: only the kinds listed here, each cleared of private text."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from .. import whole
from ..errors import InputError
from ..plain_files import PICTURE_BYTES, read_bytes
from .base import Base, look_up
from .card import make_card
from .finished import CURVE, SHEET, FinishedRun, read_finished
from .leaks import Secrets
from .verify import verify

README = "README.md"


def stage(folder: str | Path, target: str | Path, repo_id: str, online: bool = False) -> Path:
    """Write to the folder `target` exactly what publishing a run would send, and verify it.

    That is the LoRA files, the new tokens and the pictures that exist, and a model card. Pictures are encoded anew,
    since PNG files may contain hidden text. `target` appears complete or not at all.

    Args:
        folder: the output folder of a finished LoRA run, or the `model` folder in it.
        target: a folder that does not exist yet, or is empty.
        repo_id: `owner/name` on the Hub.
        online: whether the base model's licence may be looked up on the Hub.

    Returns:
        `target`, with ~ expanded.

    Raises:
        InputError: `folder` holds no finished run, or something that must not be published, or files that do not load.
    """
    check_repo_id(repo_id)
    run, target = read_finished(folder), Path(target).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already; give a folder that does not exist or is empty")
    base = look_up(run.base_model, online)
    with whole.folder(target) as new:
        expected = _write(run, base, new, repo_id)
        verify(new, expected, run, Secrets.of_this_machine(_meant(run, base, repo_id)))
    return target


def left_out(folder: str | Path, staged: Path) -> list[str]:
    """The files of the run's model folder that are not published, as paths relative to it.

    Args:
        folder: as in `stage`.
        staged: the folder that `stage` wrote.
    """
    root = read_finished(folder).folder
    names = (path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file())
    return [name for name in names if not (staged / name).exists() or name == README]


def check_repo_id(repo_id: str) -> None:
    """Raise `InputError` unless `repo_id` reads `owner/name` and follows the Hub's rules for names."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(str(error)) from None
    if "/" not in repo_id:
        raise InputError(f"{repo_id!r} is no repository; write owner/name, the owner being you or an organization")


def _write(run: FinishedRun, base: Base, new: Path, repo_id: str) -> set[str]:
    """Write all files into the folder `new` and return their names."""
    weights = [*run.weights, *run.embeddings]
    pictures = [*run.samples, *(name for name in (SHEET, CURVE) if run.has(name))]
    (new / "samples").mkdir()
    for name in weights:
        shutil.copyfile(run.folder / name, new / name)
    for name in pictures:
        _copy_picture(run.folder / name, new / name)
    if not any((new / "samples").iterdir()):
        (new / "samples").rmdir()
    (new / README).write_text(f"{make_card(run, base, repo_id)}\n", encoding="utf-8")
    return {*weights, *pictures, README}


def _copy_picture(source: Path, new: Path) -> None:
    """Write the pixels of `source` as a PNG and nothing else: its text could contain prompts, paths and settings."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_bytes(source, PICTURE_BYTES))) as picture:
            pixels = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # Pillow's decoders raise all kinds of errors
        raise InputError(f"{source} is no picture that can be read: {error}") from error
    pixels.info.clear()
    pixels.save(new, "PNG")


def _meant(run: FinishedRun, base: Base, repo_id: str) -> list[str]:
    """The texts that the user publishes on purpose, longest first; they may contain the account's name."""
    meant = [repo_id, run.name, run.instance_prompt, *run.prompts, *run.tokens, base.hub_id or ""]
    return sorted(meant, key=len, reverse=True)
