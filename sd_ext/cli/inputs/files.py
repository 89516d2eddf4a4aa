"""The picture files that a recipe names, and their digests: a recipe is worth nothing if its files have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...plain_files import PICTURE_BYTES, read_bytes, why_not
from ..request import Recipe

DIGITS = 16  # hexadecimal digits of a digest


def named_files(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(option, file) of every picture that a recipe is made from."""
    for flag, file in (("--image", recipe.image), ("--mask", recipe.mask)):
        if file is not None:
            yield flag, file
    for control in recipe.controls:
        yield "--control", control.picture
    for region in recipe.regions:
        if region.mask:
            yield "--region", region.mask


def read_picture(flag: str, file: str) -> bytes:
    """The bytes of a picture. Raises `InputError` if there is no such file, or it cannot be read."""
    path = Path(file).expanduser()
    if reason := why_not(path):
        raise InputError(f"{flag} {file}: {'no such file' if reason == 'is not there' else f'it {reason}'}")
    return read_bytes(path, PICTURE_BYTES)


def without_digests(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe without the digests of those pictures that were named anew, beside --from.

    Args:
        recipe: made from a picture's settings and what was given.
        given: the options that were given, by name.
    """
    anew = {file for flag, file in named_files(recipe) if flag.strip("-") in given}
    kept = tuple(entry for entry in recipe.digests if entry.partition(" ")[2] not in anew)
    return replace(recipe, digests=kept)


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with the digests of its pictures, which must be those that it holds already, if any.

    Raises `InputError` if a picture is missing, or is not what it was.
    """
    was = {file: digest for digest, _, file in (entry.partition(" ") for entry in recipe.digests)}
    digests = []
    for flag, file in named_files(recipe):
        known = was.get(file)
        try:
            digest = hashlib.sha256(read_picture(flag, file)).hexdigest()[:DIGITS]
        except InputError as error:
            raise InputError(f"{error}; its SHA-256 began with {known}" if known else str(error)) from None
        if known and known != digest:
            raise InputError(
                f"{flag} {file} has changed since: its SHA-256 began with {known}, now {digest}; bring back the old "
                f"one, or give {flag} beside --from to take it as it is"
            )
        digests.append(f"{digest} {file}")
    return replace(recipe, digests=tuple(dict.fromkeys(digests)))
