"""The file that travels with an exported sampler, put together from the modules that run tables.

The code that steps through a table is written once, in a few modules that need torch and Diffusers only. An exported
sampler carries them as one file (`exported_scheduler.py`): its description, what they import from elsewhere, and the
modules one after the other, without their imports of each other.
"""

from __future__ import annotations

import ast
from importlib.resources import files

MODULES = (
    *("board", "attaching", "prediction", "run", "position", "plan", "forward", "announced"),
    *("stepping", "stored", "exported"),
)
"""In the order in which they need each other; the last one describes the file."""

INSTEAD = '''\
SOURCE = Path(__file__).read_bytes()
"""This file, to put it beside a config that is saved."""

InputError = ValueError
"""`sd_ext` has errors of its own."""
'''
"""What stands for what the modules import from the rest of the package."""


def text_of(module: str) -> str:
    """The source of a module of this folder, or of the ground floor."""
    here = files("sd_ext.schedulers").joinpath(f"{module}.py")
    return (here if here.is_file() else files("sd_ext").joinpath(f"{module}.py")).read_text("utf-8")


def without_imports(text: str) -> tuple[str, str, list[ast.Import | ast.ImportFrom]]:
    """A module in three parts.

    Returns:
        Its docstring, its code without docstring and imports, and the imports that are not relative.
    """
    tree, lines = ast.parse(text), text.splitlines()
    docstring = ast.get_docstring(tree, clean=False) or ""
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in (tree.body[0], *imports):
        lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    outside = [node for node in imports if not getattr(node, "level", 0)]
    return docstring, "\n".join(lines).strip(), outside


def merged(imports: list[ast.Import | ast.ImportFrom]) -> str:
    """The import statements, each once, Python's own first."""
    names: dict[str, set[str]] = {}
    for node in imports:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        names.setdefault(module, set()).update(alias.name for alias in node.names)
    plain = {f"import {name}" for name in names.pop("", ())}
    parts = {f"from {module} import {', '.join(sorted(of))}" for module, of in names.items()}
    future = {line for line in parts if line.startswith("from __future__")}
    ours = {line for line in plain | parts if line.split()[1].split(".")[0] in ("torch", "diffusers")}

    def block(lines: set[str]) -> str:
        return "\n".join(sorted(lines, key=lambda line: (line.startswith("from"), line)))

    return "\n\n".join(block(lines) for lines in (future, (plain | parts) - ours - future, ours))


def assembled() -> str:
    """The text of the exported file."""
    taken = {module: without_imports(text_of(module)) for module in MODULES}
    imports = merged([node for _, _, outside in taken.values() for node in outside])
    parts = [f'"""{taken[MODULES[-1]][0]}"""\n\n{imports}\n\n{INSTEAD}']
    for module, (docstring, code, _) in taken.items():
        title = f"# ==== {module} " + "=" * (110 - len(module))
        about = [] if module == MODULES[-1] else [f"# {line}".rstrip() for line in docstring.strip().splitlines()]
        parts.append("\n".join([title, *about]) + f"\n\n\n{code}\n")
    return "\n\n".join(parts)


SOURCE = assembled().encode()
"""The exported file."""
