"""The house as its source shows it: no import circle, who may import whom, and who may name what is not ours."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sd_ext.seams.seam import seams

from .source import ROOT, graph, import_statements, module_of, sources, tree_of

# ---- imports ---------------------------------------------------------------------------------------------------------

FLOORS = (
    {"errors"},
    {
        "declared",
        "disguised",
        "plain_files",
        "endings",
        "tensors",
        "checked",
        "held",
        "reading",
        "version",
        "whole",
        "model_configs",
        "seams",
        "sheets",
        "board",
        "attaching",
    },
    {"pretrained", "schedulers", "unets"},
    {"models", "modular"},
    {"prompts"},
    {"lora"},
    {"hub"},
    {"training", "calibration"},
    {"cli"},
    {"ui"},
)
"""Rooms and files of the ground floor, from the bottom. Each may import what lies on lower floors."""

TOGETHER = FLOORS[1]
"""Files of the ground floor may import each other."""

INSIDE = {
    "unets": ("inside", "attention", "features"),
    "training": (
        *("settings", "quick", "optimizer", "data", "model", "sets", "encoding", "objective"),
        *("run", "diffusion", "lora", "few_step", "slider"),
    ),
}
"""Folders of a room, from the bottom; its own files lie above them."""

CIRCLES: set[frozenset[str]] = set()
"""Circles that are known; none is allowed to be added."""


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that each lead to all others of the set: strongly connected components (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        waiting.append(module)
        for other in sorted(edges[module]):
            if other not in number:
                visit(other)
            if other in waiting:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            place = waiting.index(module)
            found.append(set(waiting[place:]))
            del waiting[place:]

    for module in edges:
        if module not in number:
            visit(module)
    return [each for each in found if len(each) > 1]


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set(), "f": {"g", "e"}, "g": {"f"}}
    assert sorted(map(sorted, circles(edges))) == [["a", "b", "c"], ["f", "g"]]


def test_no_module_leads_back_to_itself():
    """Imports for type checkers and in functions count: they stand for a need all the same."""
    assert {frozenset(each) for each in circles(graph())} == CIRCLES


def room_of(module: str) -> str:
    """`unets` for `sd_ext.unets.variant`; `sd_ext` for the package itself."""
    return module.split(".")[1] if "." in module else module


def test_every_room_has_its_floor():
    assert {room_of(module) for module in graph()} - {"sd_ext"} <= set().union(*FLOORS)


def test_dependencies_point_down():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if (own := room_of(module)) != (its := room_of(other)) and "sd_ext" not in (own, its)
        if floor[its] > floor[own] or (floor[its] == floor[own] and not {own, its} <= TOGETHER)
    ]
    assert not wrong


def test_the_package_itself_is_imported_for_its_version_only():
    """It leads to all the rest. Nothing below the Hub's room asks for it."""
    wrong = [
        f"{module_of(path)} imports {name} of sd_ext"
        for path in sources()
        for module, name in import_statements(path)
        if module == "sd_ext" and name and not (ROOT / "sd_ext" / name).exists()
        if not (ROOT / "sd_ext" / f"{name}.py").exists() and name != "__version__"
    ]
    assert not wrong


def test_seams_import_nothing_of_ours_but_errors():
    others = {other for module, others in graph().items() if room_of(module) == "seams" for other in others}
    assert {other for other in others if room_of(other) != "seams"} == {"sd_ext.errors"}


@pytest.mark.parametrize("room", INSIDE)
def test_a_rooms_folders_lie_one_above_another(room):
    order = {folder: number for number, folder in enumerate(INSIDE[room])}

    def height(module: str) -> int:
        parts = module.split(".")
        return order.get(parts[2], len(order)) if len(parts) > 2 else len(order)

    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room_of(module) == room_of(other) == room and height(other) > height(module)
    ]
    assert not wrong


def test_training_needs_no_unet_variant(fresh):
    """Only `attention_backend` asks for something of that room, and for `set_attention` alone."""
    code = """
import importlib, pkgutil, sys, sd_ext.training
for file in pkgutil.walk_packages(sd_ext.training.__path__, "sd_ext.training."):
    importlib.import_module(file.name)
assert not [name for name in sys.modules if name.startswith("sd_ext.unets")]
from sd_ext.training.model.unet import prepare_unet
from sd_ext.training.model.settings import UnetSettings
from diffusers import UNet2DConditionModel
unet = UNet2DConditionModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=8,
    down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=4)
prepare_unet(unet, UnetSettings(attention_backend="auto"))
assert {type(processor).__name__ for processor in unet.attn_processors.values()} == {"MemoryEfficientAttnProcessor"}
assert "sd_ext.unets.variant" not in sys.modules
"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr


# ---- names of other libraries ----------------------------------------------------------------------------------------

PRIVATE = re.compile(r"_[A-Za-z]\w*")
REFLECTION = ("getattr", "hasattr", "setattr", "delattr")

DOCUMENTED = {"_exit"}
"""Names with an underscore that a library's documentation gives: `os._exit`."""

TRAVELS = {
    *(("schedulers/exported.py", "__module__"), ("schedulers/announced.py", "_compatibles")),
    ("attaching.py", "_compiled_call_impl"),  # without it a network that is compiled in place is as if not attached
}
"""Named where they are: these files travel with an exported sampler, and take no seam along."""

ORDINARY = {
    *("alpha", "heads", "optimizer", "padding", "processor", "r", "scale", "self"),  # also words of ours
    *("to_q", "to_k", "to_v", "to_out", "gradient_checkpointing", "set_processor"),  # names of weights, a setting
    *("lora_alpha", "use_rslora"),  # settings in files
    *("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "callback_on_step_end"),  # arguments, documented
    *("__dict__", "__module__"),  # of our own classes
}
"""Parts of seams that mean something else elsewhere."""


def own_names() -> set[str]:
    """Every name that the package gives to something: functions, classes, variables, attributes, parameters."""
    found = set()
    for path in sources():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
    return found


def named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every attribute that is read or looked up by its name, and every import from elsewhere."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            texts = node.args[1:2] if called in REFLECTION else node.args[:1] if _is_vars(node.func) else []
            yield from ((line, text.value) for text in texts if _is_text(text))  # type: ignore[attr-defined]
        elif isinstance(node, ast.Subscript) and _is_vars(node):
            yield from [(line, node.slice.value)] if _is_text(node.slice) else []  # type: ignore[attr-defined]
        elif isinstance(node, ast.Import):
            yield from ((line, part) for name in node.names for part in name.name.split("."))
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module and not _is_ours(node.module):
            yield from ((line, part) for part in node.module.split("."))
            yield from ((line, name.name) for name in node.names)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("sd_ext", "__future__")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_vars(node: ast.AST) -> bool:
    """Whether it is something of `vars(x)` or `x.__dict__`."""
    of = node.value if isinstance(node, ast.Subscript | ast.Attribute) else node
    by_function = isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "vars"
    return by_function or (isinstance(of, ast.Attribute) and of.attr == "__dict__")


def private_names(path: Path, own: set[str]) -> list[str]:
    """What a file names that belongs to another library and is none of its documented names."""
    file = path.relative_to(ROOT / "sd_ext").as_posix()
    parts = {part for known in seams().values() for part in known.parts} - ORDINARY
    tree = tree_of(path)
    found = [
        (line, name)
        for line, name in named(tree)
        if name in parts or (PRIVATE.fullmatch(name) and name not in own | DOCUMENTED)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("__module__", "__wrapped__"):
            if not isinstance(node.ctx, ast.Load) or node.attr == "__wrapped__":
                found.append((node.lineno, node.attr))
        elif isinstance(node, ast.ClassDef):
            found += [(statement.lineno, name) for statement in node.body for name in _defined(statement) & parts]
    return [f"{file}:{line} {name}" for line, name in found if (file, name) not in TRAVELS]


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a statement in a class's body gives to the class."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_only_seams_name_private_parts_of_other_libraries():
    own = own_names()
    outside = [path for path in sources() if "seams" not in path.relative_to(ROOT).parts]
    assert not [found for path in outside for found in private_names(path, own)]


BAD = {
    "import torch._dynamo": "_dynamo",
    "from torch.utils._pytree import tree_leaves": "_pytree",
    "from diffusers.loaders.peft import _SET_ADAPTER_SCALE_FN_MAPPING as X": "_SET_ADAPTER_SCALE_FN_MAPPING",
    "from diffusers.models.attention_processor import Attention": "Attention",
    "x = tensor._version": "_version",
    "self._parameters.clear()": "_parameters",
    "getattr(module, '_hf_hook', None)": "_hf_hook",
    "vars(module)['_modules'] = {}": "_modules",
    "module.__dict__['_modules']": "_modules",
    "vars(module).pop('_buffers')": "_buffers",
    "x = transformer.is_input_continuous": "is_input_continuous",
    "cls.__module__ = 'sd_ext'": "__module__",
    "del forward.__wrapped__": "__wrapped__",
    "class Ours:\n    _compatibles = []": "_compatibles",
    "class Ours:\n    def extract_init_dict(cls): ...": "extract_init_dict",
}


@pytest.mark.parametrize("code", BAD)
def test_private_names_are_found(code, tmp_path, monkeypatch):
    path = tmp_path / "sd_ext" / "example.py"
    path.parent.mkdir()
    path.write_text(code)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert [found.split()[1] for found in private_names(path, {"_ours"})][:1] == [BAD[code]]


GOOD = "from .x import _ours\nself._ours = x._ours\nos._exit(1)\nx = '_class_name'\nattn.to_q(x)\ntype(x).__module__\n"


def test_our_own_names_are_none(tmp_path, monkeypatch):
    path = tmp_path / "sd_ext" / "example.py"
    path.parent.mkdir()
    path.write_text(GOOD)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert not private_names(path, {"_ours"})


def our_classes() -> Iterator[type]:
    for path in sources():
        if path.name != "__main__.py":
            module = importlib.import_module(module_of(path))
            for value in vars(module).values():
                if isinstance(value, type) and value.__module__ in (module.__name__, "sd_ext"):
                    yield value


def test_no_name_of_ours_hides_one_that_a_base_of_another_library_has():
    """An underscore of ours in a class that derives from theirs: theirs would call it, or ours theirs."""
    clashes = set()
    for cls in our_classes():
        theirs = [base for base in cls.__mro__ if not base.__module__.startswith("sd_ext") and base is not object]
        theirs = [base for base in theirs if base.__module__ not in ("builtins", "typing", "abc", "enum")]
        private = {name for name in own_attributes(cls) if PRIVATE.fullmatch(name)}
        clashes |= {f"{cls.__name__}.{name}" for name in private for base in theirs if name in vars(base)}
    made = {"_GroupNorm._backward_cls", "Later._abc_impl"}  # by PyTorch and by Python, for every class
    chosen = {f"StableDiffusion{family}Blocks._workflow_map" for family in ("", "XL")}  # see seams.diffusers.modular
    assert clashes == {"Announced._compatibles", *chosen, *made}


def own_attributes(cls: Any) -> set[str]:
    """What a class defines in its body, and what its methods set on `self`."""
    found = set(vars(cls))
    for method in vars(cls).values():
        code = getattr(method, "__code__", None)
        found |= set(code.co_names) & attributes() if code else set()
    return found


@cache
def attributes() -> set[str]:
    """Every name that is set on an object somewhere in the package."""
    return {
        node.attr
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
