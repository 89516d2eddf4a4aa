"""A module that is put off is loaded once, in place, when it is used."""

from __future__ import annotations

import importlib
import sys

import pytest

from sd_ext.seams.later import PutOff, put_off

FILES = {
    "__init__.py": "import sys\nloaded = sys.loaded = getattr(sys, 'loaded', 0) + 1\nfrom . import part\n"
    "def twice(x): return 2 * x\nclass Kind: pass\n",
    "part.py": "import sys\nparts = sys.parts = getattr(sys, 'parts', 0) + 1\n",
    "leaf.py": "leaves = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "laterpackage"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    never = type("Kind", (), {})
    put_off("laterpackage", "twice", alone=("laterpackage.leaf",), Kind=never)
    yield sys.modules["laterpackage"], never
    for name in [name for name in sys.modules if name.startswith("laterpackage")]:
        del sys.modules[name]
    for name in ("loaded", "parts"):
        vars(sys).pop(name, None)


def is_loaded() -> bool:
    return hasattr(sys, "loaded")


def test_what_is_there_and_what_needs_nothing_of_it_load_nothing(package):
    module, never = package
    import laterpackage.leaf
    from laterpackage import Kind, twice

    assert (Kind, laterpackage, laterpackage.leaf.leaves) == (never, module, 1)
    assert not hasattr(module, "__wrapped__")
    assert not is_loaded()
    assert twice(4) == 8  # loads it
    assert is_loaded() and not isinstance(module, PutOff) and module.Kind is not never


@pytest.mark.parametrize("use", ["laterpackage.loaded", "laterpackage.part.parts"])
def test_any_other_name_and_any_submodule_load_it_once(package, use):
    module, _ = package
    name, _, what = use.rpartition(".")
    assert getattr(importlib.import_module(name), what) == 1
    assert sys.modules["laterpackage"] is module and module.part is sys.modules["laterpackage.part"]
    assert (sys.loaded, sys.parts) == (1, 1)
    assert module.part.__spec__.origin.endswith("part.py")
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing


def test_what_is_loaded_or_not_installed_stays_as_it_is():
    before = sys.modules["json"]
    put_off("json")
    put_off("laterpackage_that_is_not_there")
    put_off("laterpackage_that_is_not_there.part")
    assert sys.modules["json"] is before and "laterpackage_that_is_not_there" not in sys.modules
