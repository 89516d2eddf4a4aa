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
    """The record of a seam.

    Args:
        name: file and function, such as "torch.version".
        parts: the private names that it uses.
        seen: where they were found: versions and place.
        gone: what stops working without them, as a noun phrase: "memory estimates".
        fallback: what is done instead; "" if nothing can be done.
    """

    name: str
    parts: tuple[str, ...]
    seen: str
    gone: str
    fallback: str = ""

    @property
    def library(self) -> str:
        """The library's package name as pip has it; "python" for the standard library."""
        return self.name.partition(".")[0]

    def error(self, missing: str = "") -> SeamError:
        """Make the error to raise if a part is missing.

        Args:
            missing: the missing part; "" means all of them.
        """
        there = f"{self.library} {_version(self.library)}"
        return SeamError(
            f"{self.gone} cannot be had with {there}, which has no {missing or ', '.join(self.parts)} where it was in "
            f"{self.seen}; install such a version of {self.library}, or do without"
        )


_SEAMS: dict[str, Seam] = {}


def seam(*parts: str, seen: str, gone: str, fallback: str = "") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that makes a function a seam: if one of its private parts is missing, it raises `SeamError`.

    A part counts as missing if the function's own import of it fails, or access to an attribute of that name. Other
    errors are raised unchanged.

    Args:
        parts: the private names that the function uses.
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
    """Record a seam without guarding it: for classes, and for functions that handle missing parts themselves.

    Args:
        place: its full name, such as "sd_ext.seams.torch.shadowed".
        parts, seen, gone, fallback: see `Seam`.

    Returns:
        The record.
    """
    library, _, rest = place.removeprefix(f"{ROOM}.").partition(".")
    made = Seam(f"{library}.{rest.rpartition('.')[2]}", parts, seen, gone, fallback)
    _SEAMS[made.name] = made
    return made


def seams() -> dict[str, Seam]:
    """Every seam by its name. Imports all files of this folder, and therefore torch."""
    package = importlib.import_module(ROOM)
    for file in pkgutil.walk_packages(package.__path__, f"{ROOM}."):
        importlib.import_module(file.name)
    return dict(_SEAMS)


def _version(library: str) -> str:
    """The installed version of a library, for messages."""
    if library == "python":
        return platform.python_version()
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "(not installed)"
