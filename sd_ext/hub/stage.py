"""Put together exactly the files that would be published: only the kinds listed here, each cleared of private text."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from ..errors import InputError
from ..plain_files import PICTURE_BYTES, read_bytes
from .base import Base, look_up
from .card import make_card
from .content import Content, plain_source, stage_content
from .finished import CURVE, DIFFUSERS_FILE, SHEET, FinishedRun, read_finished
from .stranger import LORA_STRANGER
from .verify import check_run

README = "README.md"


def stage(folder: str | Path, target: str | Path, repo_id: str, online: bool = False, mail: bool = False) -> Path:
    """Write to the folder `target` exactly what publishing a run would send, and verify it; see `stage_content`.

    Args:
        folder: the output folder of a finished LoRA run, or the `model` folder in it.
        target: a folder that does not exist yet, or is empty.
        repo_id: `owner/name` on the Hub.
        online: whether the base model's licence may be looked up on the Hub.
        mail: whether mail addresses may be published.

    Returns:
        `target`, with ~ expanded.

    Raises:
        InputError: `folder` holds no finished run, or something that must not be published, or files that do not load.
    """
    return stage_content(finished_run(folder, repo_id, online), target, mail)


def finished_run(folder: str | Path, repo_id: str, online: bool = False) -> Content:
    """What is published of a finished run: the LoRA files, the new tokens, the pictures that exist, and a model card.

    Pictures are encoded anew, since PNG files may contain hidden text. For arguments and errors see `stage`.
    """
    check_repo_id(repo_id)
    run = read_finished(folder)
    base = look_up(run.base_model, online)

    def write(new: Path) -> set[str]:
        return _write(run, base, new, repo_id)

    loads = run.in_diffusers and not (run.folder / DIFFUSERS_FILE).is_symlink()
    loader = "StableDiffusionXLLoraLoaderMixin" if run.family == "sdxl" else "StableDiffusionLoraLoaderMixin"
    return Content(
        "LoRA in Diffusers and kohya formats, pictures and card",
        write,
        _meant(run, base, repo_id),
        lambda staged: check_run(staged, run),
        LORA_STRANGER.format(loader=loader, name=DIFFUSERS_FILE) if loads else "",
        _left_out(run),
    )


def _left_out(run: FinishedRun) -> list[str]:
    """The files of the run's model folder that are not published, as paths relative to it; its card is written anew."""
    names = (path.relative_to(run.folder).as_posix() for path in sorted(run.folder.rglob("*")) if path.is_file())
    kept = _names(run)
    return [name for name in names if name not in kept]


def _names(run: FinishedRun) -> set[str]:
    """The files of a run that are published."""
    pictures = [*run.samples, *(name for name in (SHEET, CURVE) if run.has(name))]
    return {*run.weights, *run.embeddings, *pictures}


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
        shutil.copyfile(plain_source(run.folder / name), new / name)
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
        with Image.open(io.BytesIO(read_bytes(plain_source(source), PICTURE_BYTES))) as picture:
            pixels = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # Pillow's decoders raise all kinds of errors
        raise InputError(f"{source} is no picture that can be read: {error}") from error
    pixels.info.clear()
    pixels.save(new, "PNG")


def _meant(run: FinishedRun, base: Base, repo_id: str) -> list[str]:
    """The texts that the user publishes on purpose; they may contain the account's name."""
    return [repo_id, run.name, run.instance_prompt, *run.prompts, *run.tokens, base.hub_id or ""]
