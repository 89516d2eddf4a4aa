"""The npm packages that hold drawings and words: fetched by `npm pack`, or found in a folder, and read with care.

    FOLDER/iconify-json-noto-1.2.9.tgz               as `npm pack @iconify-json/noto` leaves it
    FOLDER/node_modules/@iconify-json/noto/          as `npm install` does

Nothing is unpacked, and nothing in a package is ever run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sd_ext.declared import make
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.plain_files import MIB, read_bytes
from sd_ext.reading import parse_json, read_toml

DECLARED = Path(__file__).parent / "sets.toml"
FILE_BYTES = 192 * MIB  # of a file in a package: the largest of ours has 104 MB
SEARCHED_BYTES = 512 * MIB  # unpacked, how far an archive is searched for a file


@dataclass(frozen=True)
class Package:
    """A package that `sets.toml` declares.

    Args:
        package: its name at npm.
        version: that this recipe was tried with.
        licence: its SPDX identifier.
        author, source: whom to name, and where it comes from.
        style: how it draws; empty for words.
        use, wrong: see `sets.toml`.
        name: what we call it.
    """

    package: str
    version: str
    licence: str
    author: str
    source: str
    style: str = ""
    use: Literal["train", "held_out", "never"] = "train"
    wrong: tuple[str, ...] = ()
    name: str = "words"

    @property
    def archive(self) -> str:
        """How the file that `npm pack` leaves begins."""
        return self.package.removeprefix("@").replace("/", "-") + "-"


def declared(path: Path = DECLARED) -> tuple[dict[str, Package], Package]:
    """(sets of drawings by name, the package of words) of `sets.toml`."""
    table = read_toml(path)
    packages = {name: make(Package, {**entry, "name": name}, str(path), name) for name, entry in table.items()}
    words = packages.pop("words", None)
    if words is None or not packages:
        raise InputError(f"{path} must declare words and at least one set of drawings")
    return packages, words


def usable(path: Path = DECLARED) -> list[Package]:
    """The sets that may be drawn from, in the file's order: those whose licence does not ask to share alike."""
    return [p for p in declared(path)[0].values() if p.use != "never"]


def of_style(style: str, path: Path = DECLARED) -> list[Package]:
    """The usable sets that are drawn in a style. Raises `UnknownNameError` if there is none."""
    sets = usable(path)
    if found := [package for package in sets if package.style == style]:
        return found
    raise UnknownNameError("style", style, {package.style for package in sets})


def fetch(folder: Path, packages: Sequence[Package]) -> list[str]:
    """Get what is missing by `npm pack`, in the declared versions; returns the names of what was fetched.

    Raises:
        InputError: npm is not installed, or fails; says what it said.
    """
    missing = [p for p in packages if not _archives(folder, p) and not _installed(folder, p).is_dir()]
    if not missing:
        return []
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            "npm, which fetches the drawings, is not installed: apt install npm, brew install node, or nodejs.org; or "
            f"put {', '.join(p.package for p in missing)} into {folder} yourself"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for package in missing:
        command = [npm, "pack", "--silent", "--ignore-scripts", f"{package.package}@{package.version}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-300:]
            raise InputError(f"npm pack {package.package}@{package.version} failed: {said}")
    return [p.package for p in missing]


def read_file(folder: Path, package: Package, name: str) -> bytes:
    """A file of a package.

    Raises:
        InputError: the package is not in the folder, is no package, or has no such file.
    """
    installed, archives = _installed(folder, package), _archives(folder, package)
    if installed.is_dir():
        return read_bytes(installed / name, FILE_BYTES)
    if len(archives) > 1:
        names = ", ".join(path.name for path in archives)
        raise InputError(f"{folder} holds {package.package} more than once ({names}); keep one")
    if not archives:
        raise InputError(
            f"{folder} lacks {package.package}: run `npm pack {package.package}` in it, or let `sd-ext train data "
            "--fetch` do so"
        )
    return _from_archive(archives[0], f"package/{name}")


def read_packed_json(folder: Path, package: Package, name: str, kind: Any = Any) -> Any:
    """The value of a JSON file of a package."""
    return parse_json(read_file(folder, package, name), f"{name} of {package.package} in {folder}", kind)


def check_licence(folder: Path, package: Package) -> str:
    """The version of a package, once it says what `sets.toml` does about its name and licence.

    Raises:
        InputError: it is another package, or has another licence.
    """
    about = read_packed_json(folder, package, "package.json", dict[str, Any])
    for key, wanted in (("name", package.package), ("license", package.licence)):
        if about.get(key) != wanted:
            raise InputError(
                f"{package.package} in {folder} says its {key} is {about.get(key)!r}, and sets.toml {wanted!r}; it is "
                "not used until that is cleared up"
            )
    return str(about.get("version"))


def _installed(folder: Path, package: Package) -> Path:
    return folder / "node_modules" / package.package


def _archives(folder: Path, package: Package) -> list[Path]:
    pattern = re.compile(re.escape(package.archive) + r"\d[\w.+-]*\.tgz")
    return sorted(p for p in folder.glob("*.tgz") if pattern.fullmatch(p.name))


def _from_archive(path: Path, name: str) -> bytes:
    searched = 0
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                searched += member.size
                if member.name == name and member.isfile() and member.size <= FILE_BYTES:
                    file = archive.extractfile(member)
                    assert file is not None  # a regular file
                    return file.read()
                if searched > SEARCHED_BYTES:
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a package as `npm pack` leaves it: {error}; fetch it again") from None
    raise InputError(f"{path} holds no {name} of at most {FILE_BYTES // MIB} MiB: it is not the package it should be")
