"""Rename tensors by the modules that they belong to, in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Renames:
    """Two ways to name the same modules. A tensor is renamed by the longest beginning of its name that is listed.

    Args:
        pairs: (Diffusers' name, original name) of modules; what follows in a tensor's name stays.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]):
        pairs = list(pairs)
        self._original, self._ours = dict(pairs), {theirs: ours for ours, theirs in pairs}

    def original(self, name: str) -> str | None:
        """The original name of a tensor that Diffusers calls `name`; None if it belongs to no module listed."""
        return _renamed(name, self._original)

    def ours(self, name: str) -> str | None:
        """Diffusers' name of a tensor that is originally called `name`; None if it belongs to no module listed."""
        return _renamed(name, self._ours)


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (module := modules.get(".".join(parts[:length]))) is not None:
            return ".".join([module, *parts[length:]])
    return None
