"""Files that outlive the process are written through `sd_ext.whole` alone: shown by the source.

Whatever writes goes to a path that begins with the name `new`, as in `save_file(tensors, new / "a")`: within a block
`with whole.file(path) as new` (or `whole.folder`), or in a function with a parameter of that name, whose callers pass
one on in their turn.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

WRITES = {
    "write_text", "write_bytes", "save", "save_file", "save_pretrained", "save_config", "savefig", "print_png", "touch",
    "tofile", "dump", "mkdir", "makedirs", "chmod", "unlink", "remove", "rmdir", "rmtree", "copyfile", "copytree",
    "copy2", "extractall", "rename", "renames", "hardlink_to", "symlink_to", "symlink", "link", "truncate", "move",
    "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory", "SpooledTemporaryFile", "savez",
}  # fmt: skip
"""Names of functions and methods that change files."""
HIDDEN = ("os", "shutil", "tempfile")
"""Modules whose functions are called by their full names, so that they are seen here."""

ALLOWED = {
    ("calibration/report/pictures.py", "_sheet", "save"): "into memory",
    ("lora/aside.py", "__init__", "TemporaryFile"): "a file without a name, gone with the process",
    ("cli/compare/page.py", "image", "save"): "into memory",
    ("training/doctor/shots.py", "uri", "save"): "into memory",
    ("cli/pictures/encode.py", "encode", "save"): "into memory",
    ("cli/pictures/destination.py", "_check_writable", "TemporaryFile"): "a file without a name, gone at once",
    ("plain_files.py", "open_file", "open"): "for reading",
    ("held.py", "held", "open"): "to lock it, and to name the holder",
    ("training/sets/drawings/packages.py", "fetch", "mkdir"): "npm writes into it",
    ("hub/publish.py", "publish_content", "TemporaryDirectory"): "goes to the Hub, then is gone",
    ("schedulers/exported.py", "save_config", "mkdir"): "the exported file stands alone, without sd_ext",
    ("schedulers/exported.py", "save_config", "write_bytes"): "the exported file stands alone, without sd_ext",
    ("schedulers/exported.py", "save_config", "save_config"): "the exported file stands alone, without sd_ext",
    ("training/encoding/cache.py", "__init__", "mkdir"): "the cache's own folder, empty",
    ("training/encoding/cache.py", "read", "unlink"): "a damaged entry",
    ("ui/serve.py", "serve", "TemporaryDirectory"): "what is shown while the page runs, gone with it",
    ("training/lora/class_pictures.py", "_blank", "save"): "into memory",
}


def named(call: ast.Call) -> str:
    """The last part of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def begins_with(node: ast.AST) -> str:
    """The name that an expression for a path begins with."""
    if isinstance(node, ast.BinOp):
        return begins_with(node.left)
    if isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
        return begins_with(node.value)
    if isinstance(node, ast.Call):
        return begins_with(node.args[0] if named(node) in ("str", "fspath", "Path") and node.args else node.func)
    return node.id if isinstance(node, ast.Name) else ""


def writes(call: ast.Call) -> str:
    """What a call does to files by its name, or ""."""
    name, owner = named(call), begins_with(call.func) if isinstance(call.func, ast.Attribute) else ""
    if owner == "whole" or (isinstance(call.func, ast.Name) and name in ("save", "remove", "move", "truncate")):
        return ""  # as are called: safetensors' writing to memory, and functions of ours
    if call.args and isinstance(call.args[0], ast.Attribute) and call.args[0].attr == "devnull":
        return ""
    if name == "open":
        texts = [n.value for a in [*call.args, *(k.value for k in call.keywords)] for n in ast.walk(a)
                 if isinstance(n, ast.Constant) and isinstance(n.value, str)]  # fmt: skip
        mode = next((text for text in texts if set(text) <= set("rwaxbt+") and text), "r")
        return "open" if set(mode) & set("wax+") or owner == "os" else ""
    if name == "replace" and isinstance(call.func, ast.Attribute):
        return "replace" if owner == "os" or (len(call.args) == 1 and not call.keywords) else ""
    if name == "remove" and owner != "os":
        return ""  # of a list
    return name if name in WRITES else ""


def functions(tree: ast.AST) -> Iterator[tuple[str, ast.AST, list[ast.AST]]]:
    """(name, function, its own nodes) for each function, and for the module itself."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    for owner in [tree, *(node for node in ast.walk(tree) if isinstance(node, kinds))]:
        own, left = [], list(ast.iter_child_nodes(owner))
        while left:
            node = left.pop()
            own.append(node)
            left += [] if isinstance(node, kinds) else list(ast.iter_child_nodes(node))
        yield getattr(owner, "name", ""), owner, own


def parameters(owner: ast.AST) -> list[str]:
    if not isinstance(owner, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    return [argument.arg for argument in (*owner.args.posonlyargs, *owner.args.args, *owner.args.kwonlyargs)]


def opens_new(node: ast.AST) -> bool:
    """Whether it is `with whole.file(...) as new` or `with whole.folder(...) as new`."""
    return isinstance(node, ast.withitem) and (
        isinstance(node.optional_vars, ast.Name)
        and node.optional_vars.id == "new"
        and isinstance(node.context_expr, ast.Call)
        and begins_with(node.context_expr.func) == "whole"
        and named(node.context_expr) in ("file", "folder")
    )


def goes_to_new(call: ast.Call) -> bool:
    owner = [call.func.value] if isinstance(call.func, ast.Attribute) else []
    return any(begins_with(node) == "new" for node in (*owner, *call.args, *(k.value for k in call.keywords)))


def by_hand(sources: dict[str, str]) -> list[str]:
    """What is written otherwise, in files by path within the package."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    fillers, wrong = set(), []
    for path, tree in trees.items():
        for name, owner, own in functions(tree):
            calls = [node for node in own if isinstance(node, ast.Call)]
            if "new" in parameters(owner) and any(goes_to_new(call) for call in calls):
                fillers.add((path.split("/")[0], name))
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in HIDDEN and node.level == 0:
                wrong.append(f"{path}: from {node.module} import")
        for name, owner, own in functions(tree):
            held = "new" in parameters(owner) or any(map(opens_new, own))
            for call in (node for node in own if isinstance(node, ast.Call)):
                what = writes(call) or (named(call) if (path.split("/")[0], named(call)) in fillers else "")
                if what and (path, name, what) not in ALLOWED and not (held and goes_to_new(call)):
                    wrong.append(f"{path}, line {call.lineno}: {what}")
    return wrong


def package() -> dict[str, str]:
    root = ROOT / "sd_ext"
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    return {name: path.read_text("utf-8") for name, path in files.items() if name != "whole.py"}


def test_every_lasting_file_goes_through_the_one_writer():
    assert not by_hand(package())


def test_nothing_is_allowed_that_is_not_there():
    sources = package()
    for path, function, what in ALLOWED:
        found = [own for name, _, own in functions(ast.parse(sources[path])) if name == function]
        assert what in {writes(node) for own in found for node in own if isinstance(node, ast.Call)}, (path, what)


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text(text)", "open(path, 'w')", "path.open('ab')", "io.open(path, mode='r+')", "os.replace(a, b)",
        "a.replace(b)", "a.rename(b)", "save_file(tensors, path)", "picture.save(path / 'a.png')", "shutil.move(a, b)",
        "tempfile.NamedTemporaryFile()", "tempfile.mkdtemp(dir=folder)", "pipe.save_pretrained(folder)",
        "os.open(path, 1)", "from os import replace", "torch.save(state, path)", "json.dump(value, open(path, 'w'))",
        "fill(path)", "np.savez(path)", "folder.mkdir()", "path.touch()", "new.write_text(text)", "open(new, 'w')",
    ],
)  # fmt: skip
def test_what_is_written_by_hand_is_found(line):
    assert by_hand({"a.py": f"def fill(new):\n    new.write_text('')\n\ndef function():\n    {line}\n"})


@pytest.mark.parametrize(
    "line",
    [
        "new.write_text(text)", "save_file(tensors, new / 'a')", "open(new, 'r+b')", "(new / 'a').parent.mkdir()",
        "model.save(str(new))", "fill(new / 'b')", "open(path)", "text.replace('a', 'b')", "replace(config, seed=1)",
        "tarfile.open(path, 'r:')", "save(tensors, {})", "whole.write_text(path, text)", "names.remove('a')",
        "os.open(os.devnull, os.O_WRONLY)",
    ],
)  # fmt: skip
def test_what_is_not_is_not(line):
    block = f"def function():\n    with whole.file(path) as new:\n        {line}\n"
    assert not by_hand({"a.py": f"def fill(new):\n    new.write_text('')\n\n{block}"})
