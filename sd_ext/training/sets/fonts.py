"""Finds the fonts that picture sets are drawn from on this machine."""

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
        name: its name in fontconfig.
        beginning: how its file name starts; fontconfig returns another font if this one is missing.
        package: the Debian and Ubuntu package that installs it.
        places: paths at which Linux distributions install the file.
    """

    name: str
    beginning: str
    package: str
    places: tuple[str, ...]

    def find(self, path: str | os.PathLike[str] | None = None) -> Path:
        """The path of the font's file.

        Args:
            path: the file to use; None to ask fontconfig and then look in the usual places.

        Raises:
            InputError: there is no such file, or the font is not installed; names the package to install.
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
