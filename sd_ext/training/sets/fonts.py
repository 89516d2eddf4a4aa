"""Fonts that picture sets are drawn from, found on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sd_ext.errors import InputError


@dataclass(frozen=True)
class Font:
    """A font that is not part of this package.

    Args:
        name: as fontconfig calls it.
        beginning: of its file's name; fontconfig answers with another font where this one is missing.
        package: of Debian and Ubuntu that installs it.
        places: where distributions put the file.
    """

    name: str
    beginning: str
    package: str
    places: tuple[str, ...]

    def find(self, path: str | os.PathLike[str] | None = None) -> Path:
        """The font's file: the one given, or where fontconfig or the usual places have it.

        Raises:
            InputError: no such file; names the package to install.
        """
        if path is not None:
            if not Path(path).is_file():
                raise InputError(f"no font file at {path}")
            return Path(path)
        candidates = list(self.places)
        if shutil.which("fc-match"):
            command = ["fc-match", "--format=%{file}", self.name]
            candidates.insert(0, subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
        for candidate in map(Path, candidates):
            if candidate.name.startswith(self.beginning) and candidate.is_file():
                return candidate
        raise InputError(f"{self.name} is not installed: apt install {self.package}, or name its file")
