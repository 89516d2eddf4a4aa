"""A set's drawings as SVG, and which of them shows an emoji.

Some sets say which character a drawing stands for; the others are searched by the names that emojibase or those sets
give it: `red-apple`, `redapple`, `red apple` are one name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_ext.declared import check
from sd_ext.errors import InputError
from sd_ext.training.sets.drawings.packages import Package, check_licence, read_packed_json
from sd_ext.training.sets.drawings.svg import wrap


@dataclass(frozen=True)
class Icons:
    """The drawings of a set.

    Args:
        package: where they are from.
        version: the package's.
        drawings: their entries in `icons.json`, by name.
        box: left, top, width and height of those that say nothing else.
        characters: code points, such as "1f34e" -> names.
    """

    package: Package
    version: str
    drawings: dict[str, dict[str, Any]]
    box: tuple[float, float, float, float]
    characters: dict[str, str]

    def svg(self, name: str) -> str:
        """A drawing as a whole SVG, what is left to the surroundings ("currentColor") black."""
        entry, where = self.drawings[name], f"{self.package.package}, {name}"
        check(entry, dict[str, Any], where)
        body = entry.get("body")
        check(body, str, where, "body")
        sides = [entry.get(key, own) for key, own in zip(("left", "top", "width", "height"), self.box, strict=True)]
        for value in sides:
            check(value, float, where, "box")
        return wrap(str(body).replace("currentColor", "#000"), *sides)


def read_icons(folder: Path, package: Package) -> Icons:
    """The drawings of a set.

    Raises:
        InputError: the package is missing, is not what `sets.toml` says, or is damaged.
    """
    version = check_licence(folder, package)
    table = read_packed_json(folder, package, "icons.json", dict[str, Any])
    where = f"icons.json of {package.package} in {folder}"
    check(table.get("icons"), dict[str, Any], where, "icons")
    sides = tuple(table.get(key, own) for key, own in (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
    check(list(sides), list[float], where, "width and height")
    drawings: dict[str, dict[str, Any]] = dict(table["icons"])
    check(table.get("aliases", {}), dict[str, dict[str, Any]], where, "aliases")
    for name, alias in table.get("aliases", {}).items():
        if set(alias) == {"parent"} and alias["parent"] in drawings:  # turned or mirrored ones are left out
            drawings.setdefault(name, drawings[str(alias["parent"])])
    for name in package.wrong:
        drawings.pop(name, None)
    if not drawings:
        raise InputError(f"{where} holds no drawings")
    characters = read_packed_json(folder, package, "chars.json", dict[str, str])
    known = {plain_code(code): name for code, name in characters.items() if name in drawings}
    return Icons(package, version, drawings, sides, known)  # type: ignore[arg-type]


def plain_code(code: str) -> str:
    """Code points as they are compared: lower case, without the selector of coloured signs."""
    return code.lower().replace("-fe0f", "")


def code_of(emoji: str) -> str:
    """The code points of a character: "1f34e" of 🍎."""
    return plain_code("-".join(f"{ord(c):x}" for c in emoji))


def plain_name(name: str) -> str:
    """A name as it is compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


class Finder:
    """Finds the drawing of an emoji in every set.

    Args:
        sets: all that are used.
        labels: names by code points, as emojibase has them.
    """

    def __init__(self, sets: Sequence[Icons], labels: dict[str, str]):
        self.labels, self.sets = labels, sets
        self.names = {s.package.name: {plain_name(name): name for name in s.drawings} for s in sets}

    def find(self, icons: Icons, emoji: str) -> str | None:
        """The name of a set's drawing of an emoji; None if it has none."""
        code = code_of(emoji)
        if code in icons.characters:
            return icons.characters[code]
        others = [s.characters[code] for s in self.sets if code in s.characters]
        names = self.names[icons.package.name]
        tried = (plain_name(name) for name in [self.labels.get(code, ""), *others])
        return next((names[name] for name in tried if name in names), None)
