"""The kinds of adapters: LoRA, DoRA, LoHa, LoKr. A new one is a file here with a `Kind`, and its line in `KINDS`.

What comes from elsewhere calls `register`. Importing this imports no torch, so that the command knows the names.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import InputError, UnknownNameError
from .dora import DoraKind
from .kind import Kind
from .loha import LohaKind
from .lokr import LokrKind
from .lora import LoraKind

__all__ = ["KINDS", "Kind", "find_kind", "kind_of", "kinds_beside", "register", "spellings"]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (LoraKind(), DoraKind(), LohaKind(), LokrKind())}


def register(kind: Kind) -> None:
    """Have everything know a further kind: reading, writing, applying, merging, resizing, training.

    Raises:
        InputError: another kind has its name, or one of its spellings in a file.
    """
    for known in KINDS.values():
        if known.name == kind.name:
            raise InputError(f"there is a kind of adapter called {kind.name} already")
        for ours, theirs in ((known.kohya, kind.kohya), (known.dotted, kind.dotted)):
            if same := ours.keys() & theirs.keys():
                raise InputError(f"{min(same)} is how files call a tensor of {known.name}; {kind.name} needs another")
    KINDS[kind.name] = kind


def find_kind(name: str) -> Kind:
    """The kind of this name. Raises `UnknownNameError`."""
    if name not in KINDS:
        raise UnknownNameError("kind of adapter", name, KINDS)
    return KINDS[name]


def kinds_beside() -> list[Kind]:
    """The kinds whose tensor lies beside those of another kind, and changes what that one does."""
    return [kind for kind in KINDS.values() if kind.beside]


def kind_of(name: str, tensors: Iterable[str]) -> Kind:
    """The kind `name`, or what it becomes with tensors beside its own: LoHa with magnitudes is DoRA over LoHa.

    Raises:
        UnknownNameError: there is no such kind.
    """
    kind = find_kind(name)
    for other in kinds_beside():
        if other.beside in tensors:
            kind = other.over(kind)
    return kind


def spellings(format: str) -> dict[str, tuple[str, str]]:
    """What follows a module's name in a file -> (kind, tensor). The kind is "" for what lies beside any kind's tensors.

    Args:
        format: "kohya" or "dotted".
    """
    found = {"alpha": ("", "alpha")}
    for kind in KINDS.values():
        known = kind.kohya if format == "kohya" else kind.dotted
        found |= {spelling: ("" if kind.beside else kind.name, tensor) for spelling, tensor in known.items()}
    return found
