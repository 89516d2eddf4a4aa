"""Modules that other libraries import, and that a process rarely uses, are loaded when they are used.

    put_off("scipy.optimize", "linear_sum_assignment")

From then on `import scipy.optimize` and `from scipy.optimize import linear_sum_assignment` load nothing. The whole
module is loaded, in place, when the function is called, when any other name of it is asked for, or when one of its
submodules is imported. What is loaded already stays.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_LOCK = threading.RLock()


class PutOff(ModuleType):
    """A module that is not loaded yet; some of its names may be there all the same.

    Args:
        spec: where it is.
        ready: the names that are there.
        alone: submodules that may be imported without it.
    """

    def __init__(self, spec: ModuleSpec, ready: dict[str, Any], alone: tuple[str, ...] = ()):
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__package__ = spec, spec.loader, spec.parent
        self.__path__ = spec.submodule_search_locations or []
        self.__later__ = (tuple(ready), alone)
        self.__dict__.update(ready)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        load(self)
        return getattr(self, name)


def load(module: ModuleType) -> None:
    """Load a module that was put off; any other stays as it is."""
    with _LOCK:
        if not isinstance(module, PutOff):
            return
        spec, (ready, _) = module.__spec__, module.__later__
        assert spec and spec.loader
        for name in ready:
            del module.__dict__[name]
        module.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(module)


class _Submodules:
    """Has a module loaded before its submodules are."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        parent = sys.modules.get(fullname.rpartition(".")[0])
        if not isinstance(parent, PutOff) or fullname in parent.__later__[1]:
            return None
        load(parent)
        there = sys.modules.get(fullname)
        if there is None:
            return None
        loader: Any = _Loaded(there)  # it was loaded on the way, and is not to be loaded again
        there.__spec__ = ModuleSpec(fullname, loader)
        return there.__spec__


class _Loaded:
    """The loader of a module that is loaded."""

    def __init__(self, module: ModuleType):
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


_FINDER: Any = _Submodules()


def put_off(name: str, *functions: str, alone: tuple[str, ...] = (), **ready: Any) -> None:
    """Load a module when it is used. Nothing happens if it is loaded, or not installed.

    Args:
        name: the module.
        functions: functions of it that others import by name; calling them loads it.
        alone: submodules that may be imported without it, such as "torch._dynamo.x".
        ready: other names of it that are there meanwhile.
    """
    if name in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return
    if spec is None or spec.loader is None:
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    module = PutOff(spec, {**{each: _forward(name, each) for each in functions}, **ready}, alone)
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)


def _forward(module: str, name: str) -> Callable[..., Any]:
    """A function that calls another one of the same name, whose module it loads."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        load(sys.modules[module])
        return getattr(sys.modules[module], name)(*args, **kwargs)

    forward.__name__ = name
    return forward
