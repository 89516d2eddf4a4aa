"""Picture files: what a PNG remembers about its making, and writing without ever overwriting."""

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

SHEET_CELL = 128, 256  # the least and most pixels of a picture's longer side on a contact sheet


@dataclass(frozen=True)
class Recipe:
    """How one picture is made. Every field is a text chunk of the PNG, under the field's name."""

    prompt: str
    negative: str
    seed: int
    model: str  # a folder or Hub id as it was given, or "embedded"
    sampler: str  # empty: the model's own
    grid: str  # empty: the sampler's own
    scheduler: str  # the class that took the steps
    steps: int
    guidance: float
    width: int
    height: int
    device: str
    dtype: str
    unet: str = ""  # a preset; empty: the model's own

    def command(self) -> str:
        """The shell command that makes this picture again."""
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
    """The picture as a PNG file, with its recipe in text chunks."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in asdict(recipe).items() if recipe else ():
        chunks.add_itxt(key, str(value))
    chunks.add_text("Software", f"sd_ext {__version__}")
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def read_recipe(path: Path) -> tuple[Recipe, str]:
    """A picture's recipe and the software that drew it. Raises `InputError` for any file without one."""
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
    """A copy for a contact sheet: 128 to 256 pixels on the longer side, small pictures enlarged unsmoothed."""
    from PIL import Image, ImageOps

    scale = math.ceil(SHEET_CELL[0] / max(picture.size))
    if scale > 1:
        return ImageOps.scale(picture.convert("RGB"), scale, Image.Resampling.NEAREST)
    small = picture.convert("RGB")
    small.thumbnail((SHEET_CELL[1], SHEET_CELL[1]))
    return small


@dataclass(frozen=True)
class Destination:
    """Where pictures go: one named file, or numbered files in a folder."""

    folder: Path
    file: str | None = None
    overwrite: bool = False

    @classmethod
    def check(cls, out: Path, pictures: int, overwrite: bool) -> Destination:
        """Read `--out` and raise `InputError` unless `pictures` files can be written there. Leaves no trace."""
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
        """Write a whole file or none, and return its path. Raises `WriteError` where that fails."""
        while True:
            path = self.folder / (self.file or f"{stem}-{_free_number(self.folder, stem):04d}.png")
            try:
                whole.write_bytes(path, data, overwrite=bool(self.file and self.overwrite))
                return path
            except TakenError:
                if self.file:
                    raise


def name_stem(prompt: str) -> str:
    """A file name for a prompt: "A red apple!" is "a-red-apple"."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:40].strip("-") or "picture"


def _free_number(folder: Path, stem: str) -> int:
    pattern = re.compile(re.escape(stem) + r"-(\d+)\.png")
    names = os.listdir(folder) if folder.exists() else ()
    return 1 + max((int(m[1]) for m in map(pattern.fullmatch, names) if m), default=0)


def _check_writable(folder: Path) -> None:
    """Raise `InputError` unless files can be made in `folder`, or in the first parent of it that exists."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"cannot write to {folder}: {existing} is not a folder")
    try:
        # Asking the permissions is not enough: a read-only disk, and the superuser, answer otherwise.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from None
