"""What is published of one thing, whatever it is, and a folder of it that is checked before it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import whole
from ..errors import InputError
from ..plain_files import why_not
from .leaks import Secrets
from .stranger import read_back
from .verify import check_names, verify


@dataclass(frozen=True)
class Content:
    """The files of one thing that is published.

    Args:
        what: what it is, for the commit: "a sampler".
        write: writes all files, the card too, into a new folder; returns their names.
        meant: texts that are published on purpose and may hold the account's name.
        check: what only this kind must satisfy; gets the folder.
        stranger: Python code that loads it where sd_ext is not installed, given the folder as its first argument; "" if
            nobody can.
        left_out: files of the source that are not published.
    """

    what: str
    write: Callable[[Path], set[str]]
    meant: Sequence[str] = ()
    check: Callable[[Path], object] = lambda folder: None
    stranger: str = ""
    left_out: Sequence[str] = ()


def stage_content(content: Content, target: str | Path, mail: bool = False) -> Path:
    """Write to the folder `target` exactly what would be sent, search it for secrets, and load it as a stranger would.

    Args:
        content: what is published.
        target: a folder that does not exist yet, or is empty. It appears complete or not at all.
        mail: whether mail addresses may be published.

    Returns:
        `target`, with ~ expanded.

    Raises:
        InputError: something that must not be published, or does not load.
    """
    target = Path(target).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already; give a folder that does not exist or is empty")
    meant = sorted(content.meant, key=len, reverse=True)
    with whole.folder(target) as new:
        expected = content.write(new)
        verify(new, expected, Secrets.of_this_machine(meant, mail))
        content.check(new)
        if content.stranger:
            read_back(content.stranger, new)
            check_names(new, expected)  # loading must not have left anything, such as compiled code
    return target


def plain_source(path: Path) -> Path:
    """The path, if it is a file and no link: a link could lead to something that nobody meant to publish.

    Raises:
        InputError: it is a link, is not there, or is no file.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link, and links are not followed here; put the file itself in its place")
    if reason := why_not(path):
        raise InputError(f"{path} {reason}")
    return path
