"""The package's source as tests look at it: files, modules, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def sources() -> list[Path]:
    """Every file of the package."""
    return sorted((ROOT / "sd_ext").rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def module_of(path: Path) -> str:
    """`sd_ext.unets` for sd_ext/unets/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_statements(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file imports anywhere, in functions and for type checkers too.

    `from ..errors import X` in sd_ext/unets/steps.py is `("sd_ext.errors", "X")`, `import torch` is `("torch", "")`.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, name.name) for name in node.names)


def graph() -> dict[str, set[str]]:
    """The modules of the package, and which of each other they import.

    `from .inside import views` imports `views`, and not its package. That packages are imported before what lies in
    them is no edge: theirs are empty, or give names when they are asked for.
    """
    files = {module_of(path): path for path in sources()}
    edges: dict[str, set[str]] = {}
    for module, path in files.items():
        found = {f"{base}.{name}" if f"{base}.{name}" in files else base for base, name in import_statements(path)}
        edges[module] = (found & files.keys()) - {module}
    return edges
