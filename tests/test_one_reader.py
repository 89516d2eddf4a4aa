"""Files that others may have written are read through `sd_ext.reading` and `sd_ext.plain_files` alone."""

from __future__ import annotations

import ast

import pytest

from .source import ROOT, sources, tree_of

OWN = {"reading.py", "plain_files.py"}
PARSERS = {"json", "tomllib", "tomli", "csv", "yaml", "pickle"}
READS = {"read_text", "read_bytes", "safe_open", "load_file", "open", "fromfile", "loadtxt"}
LOADERS = {"torch", "np", "numpy", "json", "tomllib", "tomli", "yaml", "pickle"}  # whose `load` reads a file

IN_MEMORY, OWN_WORK, OURS = "decoded from bytes that were read", "written in this process", "a file of this package"
ALLOWED = {
    ("checked.py", "file_digest", "path.open"): "hashed, not understood",
    ("checked.py", "load_checked", "safe_open"): "plain files alone; a checksum decides",
    ("cli/publish.py", "_write", "read_text"): OWN_WORK,
    ("cli/compare/cells.py", "open_cell", "Image.open"): IN_MEMORY,
    ("cli/job.py", "_pack", "tarfile.open"): "for writing",
    ("cli/verify.py", "_kept", "Image.open"): IN_MEMORY,
    ("endings.py", "_discard", "open"): "the null device",
    ("endings.py", "_fill_standard_streams", "open"): "the null device",
    ("held.py", "held", "open"): "to lock it; its text is shown, not understood",
    ("hub/stage.py", "_copy_picture", "Image.open"): IN_MEMORY,
    ("disguised.py", "_said", "json.loads"): "a kilobyte at most, and only shown",
    ("lora/formats/body.py", "__init__", "open"): OWN_WORK,
    ("lora/formats/body.py", "fill", "open"): "for writing",
    ("models/edit.py", "edit_header", "new.open"): "for writing",
    ("lora/formats/files.py", "holds_what_it_tells", "path.open"): "hashed, not understood",
    ("schedulers/assemble.py", "text_of", "read_text"): OURS,
    ("schedulers/exported.py", "to_json_string", "json.loads"): "its own config; the exported file stands alone",
    ("schedulers/travel.py", "strict", "json.loads"): "its own config, to be written without infinities",
    ("training/data/images.py", "is_whole_png", "Image.open"): IN_MEMORY,
    ("training/data/images.py", "decode_picture", "Image.open"): IN_MEMORY,
    ("training/data/shards.py", "members", "tarfile.open"): "plain files alone; headers only, and any error is caught",
    ("training/diffusion/previews.py", "read_whole_pictures", "Image.open"): "looked through by is_whole_png",
    ("training/fork.py", "pictures_in", "Image.open"): "looked through by is_whole_png",
    ("training/model/text_encoder.py", "save_text_encoder", "load_file"): OWN_WORK,
    ("training/model/tokenizer.py", "train_tokenizer", "json.loads"): "a tokenizer in memory",
    ("training/run/checkpoint.py", "state_checksum", "json.loads"): "a state in memory",
    ("training/run/memory.py", "container_memory", "read_text"): "the system's own",
    ("training/run/memory.py", "system_memory", "read_text"): "the system's own",
    ("training/sets/drawings/card.py", "write_card", "read_text"): OURS,
    ("training/sets/drawings/book.py", "pixels", "Image.open"): IN_MEMORY,
    ("training/sets/drawings/folder.py", "attribution", "read_text"): OURS,
    ("training/sets/drawings/packages.py", "_from_archive", "tarfile.open"): "bounded",
    ("training/sets/drawings/svg.py", "render", "Image.open"): IN_MEMORY,
    ("whole.py", "_boot", "read_text"): "the system's own",
    ("whole.py", "_lock", "open"): "for a lock",
    ("whole.py", "append", "open"): "for writing",
    ("whole.py", "sync", "open"): "for flushing",
}
"""(file, function, what) -> why it may be."""


def called(call: ast.Call) -> tuple[str, str]:
    """(owner, name): `json.loads` is ("json", "loads"), `path.open` ("path", "open"), `open` ("", "open")."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.value.id if isinstance(function.value, ast.Name) else "…", function.attr
    return "", getattr(function, "id", "")


def reads(call: ast.Call) -> str:
    """What a call reads by, or ""."""
    owner, name = called(call)
    if owner == "" and name in ("read_text", "read_bytes"):
        return ""  # ours
    if owner in PARSERS and name in ("load", "loads", "reader", "DictReader", "safe_load"):
        return f"{owner}.{name}"
    if owner in LOADERS and name == "load":
        return f"{owner}.load"
    if name == "open" and owner not in ("", "os", "io"):
        return f"{owner}.open"
    return name if name in READS else ""


def by_hand(path: str, tree: ast.Module) -> list[tuple[str, str, str]]:
    """(path, function, what) for each way around the guarded reader."""
    found = []

    def look(node: ast.AST, function: str) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.ImportFrom) and node.module in PARSERS and not node.level:
            found.append((path, function, f"from {node.module} import"))
        if isinstance(node, ast.Call) and (what := reads(node)):
            found.append((path, function, what))
        for child in ast.iter_child_nodes(node):
            look(child, function)

    look(tree, "")
    return found


def package() -> list[tuple[str, str, str]]:
    files = {path.relative_to(ROOT / "sd_ext").as_posix(): path for path in sources()}
    return [each for name, path in files.items() if name not in OWN for each in by_hand(name, tree_of(path))]


def test_foreign_files_are_read_by_the_guarded_reader():
    assert not [each for each in package() if each not in ALLOWED]


def test_nothing_is_allowed_that_is_not_there():
    assert ALLOWED.keys() <= set(package())


@pytest.mark.parametrize(
    "line",
    [
        "json.load(file)", "json.loads(text)", "tomllib.loads(text)", "csv.reader(lines)", "csv.DictReader(lines)",
        "path.read_text()", "(folder / 'a').read_bytes()", "open(path)", "path.open('rb')", "os.open(path, 0)",
        "safe_open(path, 'pt')", "load_file(path)", "torch.load(path)", "Image.open(path)", "from json import loads",
        "tarfile.open(path)", "np.load(path)",
    ],
)  # fmt: skip
def test_what_goes_around_it_is_found(line):
    assert len(by_hand("a.py", ast.parse(f"def function():\n    {line}"))) == 1


@pytest.mark.parametrize(
    "line", ["read_text(path)", "read_json(path)", "json.dumps(value)", "open_file(path)", "self.load()"]
)
def test_what_does_not_is_not(line):
    assert not by_hand("a.py", ast.parse(line))
