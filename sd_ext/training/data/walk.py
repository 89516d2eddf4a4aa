"""Every file of a data folder, and every folder in it that is not entered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sd_ext.training.data.items import SUFFIXES

MASK_ENDINGS = (".mask", "-masklabel")
CAPTION_ENDINGS = (".txt", ".caption")
LEADS_OUT = (
    "is a link to a folder, which is not followed, since it leads out; name that folder as data, or copy it here"
)


@dataclass
class Walk:
    """What lies in a folder and its subfolders.

    Args:
        folder: the folder.
        files: all that is no folder, in the order of their names; without hidden files.
        hidden: files and folders whose names begin with a dot.
        closed: folders that are not entered, with the reason.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    closed: dict[Path, str] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        """A path relative to the folder, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    @property
    def pictures(self) -> list[Path]:
        """The files whose endings are those of pictures, without masks."""
        return [path for path in self.files if is_picture(path) and not path.stem.endswith(MASK_ENDINGS)]


def is_picture(path: Path) -> bool:
    """Whether a file's name ends as a picture's does."""
    return path.suffix.lower() in SUFFIXES


def walk(folder: Path, root: Path | None = None) -> Walk:
    """List a folder and its subfolders.

    Links to folders are followed if they lead to a folder inside `root`, but not in a circle, and none below another.

    Args:
        folder: the folder to list.
        root: the data folder, which links must not lead out of; None for `folder`.
    """
    found, base = Walk(folder), (root or folder).resolve()
    _enter(found, folder, base, (folder.resolve(),), linked=False)
    return found


def _enter(found: Walk, here: Path, base: Path, above: tuple[Path, ...], linked: bool) -> None:
    try:
        entries = sorted(here.iterdir())
    except OSError as error:
        found.closed[here] = f"cannot be read ({error.strerror})"
        return
    for path in entries:
        if path.name.startswith("."):
            found.hidden.append(path)
        elif not path.is_dir():
            found.files.append(path)
        elif reason := _not_entered(path, base, above, linked):
            found.closed[path] = reason
        else:
            _enter(found, path, base, (*above, path.resolve()), linked or path.is_symlink())


def _not_entered(path: Path, base: Path, above: tuple[Path, ...], linked: bool) -> str:
    if not path.is_symlink():
        return ""
    target = path.resolve()
    if not target.is_relative_to(base):
        return LEADS_OUT
    if target in above:
        return "is a link to a folder that it lies in, which is not followed"
    return "is a link below a link to a folder, which is not followed" if linked else ""


class Beside:
    """Finds the captions and masks that lie beside pictures.

    The caption of `cat.png` is in `cat.txt`, `cat.caption`, `cat.png.txt` or `cat.png.caption`, the first of these that
    there is; its mask is a picture called `cat.mask` or `cat-masklabel`. Endings may be in capitals.

    Args:
        files: all files of the folder.
    """

    def __init__(self, files: Iterable[Path]):
        self.files: dict[tuple[Path, str, str], Path] = {}
        for path in files:
            self.files.setdefault((path.parent, path.stem, path.suffix.lower()), path)

    def caption(self, picture: Path) -> Path | None:
        """The file with a picture's caption."""
        names = [(stem, ending) for stem in (picture.stem, picture.name) for ending in CAPTION_ENDINGS]
        return next((self.files[key] for name in names if (key := (picture.parent, *name)) in self.files), None)

    def mask(self, picture: Path) -> Path | None:
        """The file with a picture's mask."""
        names = [(picture.stem + mark, ending) for mark in MASK_ENDINGS for ending in SUFFIXES]
        return next((self.files[key] for name in names if (key := (picture.parent, *name)) in self.files), None)
