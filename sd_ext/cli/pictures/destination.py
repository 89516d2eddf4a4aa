"""Where pictures are written: file names that replace nothing by accident."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ... import whole
from ...errors import InputError, TakenError
from .encode import ENDINGS

SHORT = {"png": "png", "jpeg": "jpg", "webp": "webp"}  # endings of numbered files


@dataclass(frozen=True)
class Destination:
    """Where pictures are written: one named file, or numbered files in a folder.

    Args:
        folder: the folder.
        file: the name of the single file; None for numbered files.
        overwrite: whether the single file may be replaced.
        form: of the pictures: "png", "jpeg" or "webp".
    """

    folder: Path
    file: str | None = None
    overwrite: bool = False
    form: str = "png"

    @property
    def ending(self) -> str:
        """Of numbered files: ".png"."""
        return f".{SHORT[self.form]}"

    @classmethod
    def check(cls, out: Path, pictures: int, overwrite: bool, form: str | None = None) -> Destination:
        """Interpret `--out` and check that it can be written to. Nothing is left behind by the check.

        Args:
            out: a file, whose ending says its format, or a folder.
            pictures: how many pictures will be written.
            overwrite: whether an existing file may be replaced.
            form: the format; None means the file's own, or PNG in a folder.

        Raises:
            InputError: it cannot be written to, is another kind of file, exists, or is one file for several pictures.
        """
        by_ending = ENDINGS.get(out.suffix.lower())
        if by_ending is None or out.is_dir():
            if re.fullmatch(r"\.(gif|bmp|tiff?|avif|heic|jxl)", out.suffix.lower()) and not out.is_dir():
                raise InputError(f"--out {out}: only .png, .jpg and .webp files are written")
            _check_writable(out)
            return cls(out, form=form or "png")
        if form not in (None, by_ending):
            raise InputError(f"--out {out} names a {by_ending} file and --format says {form}; leave one of them out")
        if pictures > 1:
            raise InputError(f"--out {out} is one file and {pictures} pictures are to be made; name a folder")
        if out.exists() and not overwrite:
            raise InputError(f"{out} exists; give --overwrite, another name, or a folder")
        _check_writable(out.parent)
        return cls(out.parent, out.name, overwrite, by_ending)

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
            path = self.folder / (self.file or f"{stem}-{_free_number(self.folder, stem):04d}.{SHORT[self.form]}")
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
    """One more than the highest number of the pictures `stem-NUMBER` in the folder, of any format."""
    pattern = re.compile(re.escape(stem) + r"-(\d+)\.(?:png|jpg|webp)")
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
