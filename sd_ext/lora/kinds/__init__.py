"""The kinds of adapters: LoRA, DoRA, LoHa, LoKr, ... To add one, write a `Kind` in a file here and list it in `KINDS`.

Other packages call `register`. Importing this package does not import torch, so that the command line can list the
names quickly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ...errors import InputError, UnknownNameError
from .dora import DoraKind
from .full import DiffKind, SetKind
from .glora import GloraKind
from .ia3 import Ia3Kind
from .kind import Kind
from .loha import LohaKind
from .lokr import LokrKind
from .lora import LoraKind
from .of_inputs import BoftInputsKind, OftInputsKind
from .oft import OftKind
from .sparse import SparseKind
from .tlora import TloraKind

__all__ = ["KINDS", "Kind", "Meaning", "find_kind", "kind_of", "kinds_beside", "register", "spellings"]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        LoraKind(), SparseKind(), DoraKind(), LohaKind(), LokrKind(), Ia3Kind(), GloraKind(), OftKind(), TloraKind(),
        DiffKind(), SetKind(), OftInputsKind(), BoftInputsKind(),
    )
}  # fmt: skip


class Meaning(NamedTuple):
    """What a tensor in a file is.

    Args:
        kind: the name of its kind; "" for tensors that may accompany any kind: `alpha`, and those of `kinds_beside`.
        tensor: its name there.
        bias: whether it changes the module's bias, not its weight.
    """

    kind: str
    tensor: str
    bias: bool = False


def register(kind: Kind) -> None:
    """Add a kind: its adapters can then be read, written, applied, merged, resized and, if it allows, trained.

    Raises:
        InputError: another kind has the same name, or the same key for a tensor in a file format.
    """
    for known in KINDS.values():
        if known.name == kind.name:
            raise InputError(f"there is a kind of adapter called {kind.name} already")
        for ours, theirs in ((known.kohya, kind.kohya), (known.dotted, kind.dotted)):
            if same := ours.keys() & theirs.keys():
                raise InputError(f"{min(same)} is how files call a tensor of {known.name}; {kind.name} needs another")
    KINDS[kind.name] = kind


def find_kind(name: str) -> Kind:
    """The kind with this name. Raises `UnknownNameError` if there is none."""
    if name not in KINDS:
        raise UnknownNameError("kind of adapter", name, KINDS)
    return KINDS[name]


def kinds_beside() -> list[Kind]:
    """The kinds, such as DoRA, that add one tensor to those of another kind and modify what that kind does."""
    return [kind for kind in KINDS.values() if kind.beside]


def kind_of(name: str, tensors: Iterable[str]) -> Kind:
    """The kind of an adapter, from its name and its tensors: "loha" with a tensor `dora` is DoRA over LoHa.

    Args:
        name: the kind's name.
        tensors: the names of the adapter's tensors.

    Raises:
        UnknownNameError: there is no such kind.
    """
    kind = find_kind(name)
    for other in kinds_beside():
        if other.beside in tensors:
            kind = other.over(kind)
    return kind


def spellings() -> dict[str, Meaning]:
    """Everything that may follow a module's name in the keys of a file -> what it is."""
    found = {"alpha": Meaning("", "alpha"), "scalar": Meaning("", "scalar")}
    for kind in KINDS.values():
        name = "" if kind.beside else kind.name
        for known in (kind.dotted, kind.kohya):
            found |= {spelling: Meaning(name, tensor) for spelling, tensor in known.items()}
        for of, known in kind.elsewhere.items():
            found |= {spelling: Meaning(name, tensor, "bias" in of) for spelling, tensor in known.items()}
    return found
