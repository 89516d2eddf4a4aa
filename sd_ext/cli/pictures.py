"""Picture files: the text in a PNG that records how it was made, and file names that replace nothing by accident."""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__, whole
from ..errors import InputError, TakenError
from ..models import EMBEDDED
from ..plain_files import why_not
from .png_text import read_png_texts

if TYPE_CHECKING:
    from PIL.Image import Image

SHEET_CELL = 128, 256  # smallest and largest length, in pixels, of a picture's longer side on a contact sheet


@dataclass(frozen=True)
class Recipe:
    """How one picture is made. In the PNG, every field is a text chunk of the same name."""

    prompt: str
    negative: str
    seed: int
    model: str  # a folder or Hub id as it was given, or "embedded"
    sampler: str  # empty: the model's own
    grid: str  # empty: the sampler's own
    scheduler: str  # the scheduler's class
    steps: int
    guidance: float
    width: int
    height: int
    device: str
    dtype: str
    unet: str = ""  # a preset; empty: the model's own

    def command(self) -> str:
        """The shell command that generates this picture again."""
        options = {
            "model": "" if self.model == EMBEDDED else self.model,
            "sampler": self.sampler,
            "grid": self.grid,
            "steps": self.steps,
            "guidance": self.guidance,
            "negative": self.negative,
            "seed": self.seed,
            "size": f"{self.width}x{self.height}",
            "device": self.device,
            "dtype": self.dtype,
            "unet": self.unet,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value != ""]
        return shlex.join(["sd-ext", "generate", *given, "--", self.prompt])


def encode(picture: Image, recipe: Recipe | None = None) -> bytes:
    """Encode a picture as PNG.

    Args:
        picture: the picture.
        recipe: how it was made, to be stored in text chunks; None stores nothing.

    Returns:
        The bytes of the file.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in asdict(recipe).items() if recipe else ():
        chunks.add_itxt(key, str(value))
    chunks.add_text("Software", f"sd_ext {__version__}")
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def read_recipe(path: Path) -> tuple[Recipe, str]:
    """Read how a picture was made.

    Args:
        path: a PNG file.

    Returns:
        The recipe, and the name and version of the software that made the picture, or "".

    Raises:
        InputError: the file is no PNG, or has no recipe.
    """
    reason = why_not(path)
    if reason:
        there = f"{path} cannot be read as a picture: it {reason}"
        raise InputError(f"no such picture: {path}" if reason == "is not there" else there)
    chunks = read_png_texts(path)
    try:
        # The annotations are text (postponed), and each names the type that parses its chunk.
        parse = {"str": str, "int": int, "float": _finite}
        chunks.setdefault("unet", "")  # pictures of 0.1.0 do not name one
        recipe = Recipe(**{field.name: parse[str(field.type)](chunks[field.name]) for field in fields(Recipe)})
    except (KeyError, ValueError):
        raise InputError(f"{path} does not say how it was made; only PNGs of sd-ext generate do") from None
    return recipe, chunks.get("Software", "")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def thumbnail(picture: Image) -> Image:
    """A copy for a contact sheet, 128 to 256 pixels on the longer side; small pictures are not smoothed."""
    from PIL import Image, ImageOps

    scale = math.ceil(SHEET_CELL[0] / max(picture.size))
    if scale > 1:
        return ImageOps.scale(picture.convert("RGB"), scale, Image.Resampling.NEAREST)
    small = picture.convert("RGB")
    small.thumbnail((SHEET_CELL[1], SHEET_CELL[1]))
    return small


@dataclass(frozen=True)
class Destination:
    """Where pictures are written: one named file, or numbered files in a folder.

    Args:
        folder: the folder.
        file: the name of the single file; None for numbered files.
        overwrite: whether the single file may be replaced.
    """

    folder: Path
    file: str | None = None
    overwrite: bool = False

    @classmethod
    def check(cls, out: Path, pictures: int, overwrite: bool) -> Destination:
        """Interpret `--out` and check that it can be written to. Nothing is left behind by the check.

        Args:
            out: a .png file or a folder.
            pictures: how many pictures will be written.
            overwrite: whether an existing file may be replaced.

        Raises:
            InputError: it cannot be written to, is another kind of file, exists, or is one file for several pictures.
        """
        if out.suffix.lower() != ".png" or out.is_dir():
            if re.fullmatch(r"\.(jpe?g|webp|gif|bmp|tiff?)", out.suffix.lower()):
                raise InputError(f"--out {out}: only .png files are written")
            _check_writable(out)
            return cls(out)
        if pictures > 1:
            raise InputError(f"--out {out} is one file and {pictures} pictures are to be made; name a folder")
        if out.exists() and not overwrite:
            raise InputError(f"{out} exists; give --overwrite, another name, or a folder")
        _check_writable(out.parent)
        return cls(out.parent, out.name, overwrite)

    def write(self, data: bytes, stem: str) -> Path:
        """Write a file, completely or not at all.

        Args:
            data: the contents.
            stem: how the name of a numbered file begins.

        Returns:
            Its path.

        Raises:
            WriteError: it cannot be written.
        """
        while True:
            path = self.folder / (self.file or f"{stem}-{_free_number(self.folder, stem):04d}.png")
            try:
                whole.write_bytes(path, data, overwrite=bool(self.file and self.overwrite))
                return path
            except TakenError:
                if self.file:
                    raise


def name_stem(prompt: str) -> str:
    """Make the beginning of a file name from a prompt: "A red apple!" becomes "a-red-apple"."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:40].strip("-") or "picture"


def _free_number(folder: Path, stem: str) -> int:
    """One more than the highest number of the files `stem-NUMBER.png` in the folder."""
    pattern = re.compile(re.escape(stem) + r"-(\d+)\.png")
    names = os.listdir(folder) if folder.exists() else ()
    return 1 + max((int(m[1]) for m in map(pattern.fullmatch, names) if m), default=0)


def _check_writable(folder: Path) -> None:
    """Raise `InputError` unless a file can be created in `folder` or, if missing, its nearest existing parent."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"cannot write to {folder}: {existing} is not a folder")
    try:
        # Checking permission bits is not enough: they are wrong for read-only disks and for the superuser.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
