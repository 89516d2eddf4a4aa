"""A seam: a function through which this package reaches a private part of another library."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import ParamSpec, TypeVar

from ..errors import SeamError

P = ParamSpec("P")
R = TypeVar("R")
ROOM = "sd_ext.seams"


@dataclass(frozen=True)
class Seam:
    """What is known of a seam.

    Args:
        name: file and function, such as "torch.version".
        parts: the private names behind it.
        seen: where they were found: versions and place.
        gone: what stops working without them, as a noun: "memory estimates".
        fallback: what is done instead; empty where nothing can be.
    """

    name: str
    parts: tuple[str, ...]
    seen: str
    gone: str
    fallback: str = ""

    @property
    def library(self) -> str:
        """The library's name as pip knows it; "python" is the standard library."""
        return self.name.partition(".")[0]

    def error(self, missing: str = "") -> SeamError:
        """What to raise where a part is missing.

        Args:
            missing: which one; all parts if empty.
        """
        there = f"{self.library} {_version(self.library)}"
        return SeamError(
            f"{self.gone} cannot be had with {there}, which has no {missing or ', '.join(self.parts)} where it was in "
            f"{self.seen}; install such a version of {self.library}, or do without"
        )


_SEAMS: dict[str, Seam] = {}


def seam(*parts: str, seen: str, gone: str, fallback: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function of this folder a seam: where one of its parts is missing it raises `SeamError`.

    Parts are found missing by the function's own imports, and by attributes of these names. Other errors pass.

    Args:
        parts: private names that the function uses.
        seen, gone, fallback: see `Seam`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = declare(f"{function.__module__}.{function.__name__}", *parts, seen=seen, gone=gone, fallback=fallback)

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except ImportError as error:
                words = re.findall(r"\w+", str(error))
                raise known.error(next((part for part in parts if part in words), "")) from error
            except AttributeError as error:
                if error.name not in parts:
                    raise
                raise known.error(error.name) from error

        return guarded

    return decorate


def declare(place: str, *parts: str, seen: str, gone: str, fallback: str = "") -> Seam:
    """Enter a seam that is no function, such as a class. Arguments as those of `Seam`; `place` is its full name."""
    library, _, rest = place.removeprefix(f"{ROOM}.").partition(".")
    made = Seam(f"{library}.{rest.rpartition('.')[2]}", parts, seen, gone, fallback)
    _SEAMS[made.name] = made
    return made


def seams() -> dict[str, Seam]:
    """Every seam by its name. Imports all files of this folder, and with them torch."""
    package = importlib.import_module(ROOM)
    for file in pkgutil.walk_packages(package.__path__, f"{ROOM}."):
        importlib.import_module(file.name)
    return dict(_SEAMS)


def _version(library: str) -> str:
    if library == "python":
        return platform.python_version()
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "(not installed)"
