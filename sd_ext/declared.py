"""Check values that come from outside against declared types.

    check("false", bool, "scheduler_config.json", "use_karras_sigmas")
    InputError: scheduler_config.json: use_karras_sigmas must be true or false, got 'false'

A declared type is written as an annotation: `int`, `float`, `str`, `bool`, `None`, `Any`, `X | None`, `list[X]`,
`Sequence[X]`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, `Literal["a", "b"]`, or a dataclass for an object whose
keys are its fields. Whole numbers are accepted as `float`; true and false are not accepted as numbers; numbers must be
finite, unless the type is `Unbounded` or `Measured`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import InputError, UnknownNameError

T = TypeVar("T")

Unbounded = Annotated[float, "may be infinite"]
"""A number that may be infinite, such as a limit that is switched off."""

Measured = Annotated[float, "may be infinite or NaN"]
"""A number that came out of a measurement, such as a loss."""

Wide = Annotated[int, "below 2^64"]
"""A whole number below 2^64, such as a seed; others are below 2^63."""

_WORDS: dict[Any, tuple[str, str]] = {  # type -> its name in a message: singular, plural
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false each"),
    type(None): ("none", "nones"),
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 4


def shown(value: Any) -> str:
    """`repr(value)`, shortened so that it fits into a message."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of thousands of digits"


def described(kind: Any, several: bool = False) -> str:
    """A declared type in words, for messages: `list[int] | None` is "a list of whole numbers or none".

    Args:
        kind: the type.
        several: use the plural.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return described(args[0], several)
    if kind is None:
        kind = type(None)
    if kind in _WORDS:
        return _WORDS[kind][several]
    if origin in (Union, types.UnionType):
        return _or([described(each, several) for each in args])
    if origin is Literal:
        return _or([repr(each) for each in args])
    if origin is tuple and args[-1:] != (...,):
        return f"a list of {len(args)}: {', '.join(described(each) for each in args)}"
    if _is_list(kind):
        items = f" of {described(args[0], True)}" if args and args[0] is not Any else ""
        return f"lists{items}" if several else f"a list{items}"
    return "objects" if several else "an object with keys"


def _or(words: list[str]) -> str:
    """Join words as "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def check(value: Any, kind: Any, where: str, *path: str | int, error: type[InputError] = InputError) -> None:
    """Raise `error` unless `value` is of the declared type. The message names the innermost place that is wrong.

    Args:
        value: what came from a file or a caller.
        kind: the declared type.
        where: the file, or the class whose option it is.
        path: keys and positions that lead to the value.
        error: the kind of `InputError` to raise.

    Raises:
        InputError: the value, or something in it, is of another type, or a required key is missing.
    """
    if found := _mismatch(value, kind, path):
        inner, wanted, got = found
        if got is dataclasses.MISSING:
            raise error(f"{where} lacks {joined(inner)} ({wanted})")
        place = f"{where}: {joined(inner)}" if inner else where
        raise error(f"{place} must be {wanted}, got {shown(got)}")


def make(cls: type[T], data: Any, where: str, *path: str | int, error: type[InputError] = InputError) -> T:
    """Make a dataclass from an object whose keys are its fields. Unknown keys are ignored; lists become tuples.

    Args:
        cls: the dataclass.
        data: the object, as read from a file.
        where: the file, for messages.
        path: keys and positions in that file that lead to the object.
        error: the kind of `InputError` to raise.

    Returns:
        An instance of `cls`.

    Raises:
        InputError: a key without a default is missing, a value is of another type, or the class refuses it. The message
            names the file and the key.
    """
    check(data, cls, where, *path, error=error)
    hints = _hints(cls)
    names = [spec.name for spec in dataclasses.fields(cls) if spec.name in data]  # type: ignore[arg-type]
    try:
        return cls(**{name: _as_declared(data[name], hints[name]) for name in names})
    except UnknownNameError:
        raise
    except InputError as problem:
        raise error(f"{where}: {problem}") from None


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The declared types of a dataclass's fields; once, since Python works them out anew at each call."""
    return get_type_hints(cls, include_extras=True)


def _as_declared(value: Any, kind: Any) -> Any:
    """Turn a list into a tuple, at every depth, where a tuple is declared."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if isinstance(value, list) and any(get_origin(each) is tuple for each in kinds):
        inner = next(get_args(each)[0] for each in kinds if get_origin(each) is tuple)
        return tuple(_as_declared(item, inner) for item in value)
    return value


def joined(path: Sequence[str | int]) -> str:
    """Format a path for messages: ("runs", 3, "basis") is `runs[3].basis`; at most eight parts are shown."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{shown(key)[1:-1]}" for key in path[:8])
    return text.removeprefix(".") + ("…" if len(path) > 8 else "")


Mismatch = tuple[tuple[Any, ...], str, Any]  # path to the place, expected type in words, value found there


def _mismatch(value: Any, kind: Any, path: tuple[Any, ...]) -> Mismatch | None:
    """Find the first place where `value` is not of type `kind`; None if there is none."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return None
    if origin in (Union, types.UnionType):
        problems = [_mismatch(value, each, path) for each in args]
        if None in problems:
            return None
        deeper = [found for found in problems if found and len(found[0]) > len(path)]
        return deeper[0] if deeper else (path, described(kind), value)
    if dataclasses.is_dataclass(kind):
        return _object_mismatch(value, kind, path)
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        if not isinstance(value, Mapping):
            return path, described(kind), value
        inner = args[1] if args else Any
        return _first((item, inner, (*path, key)) for key, item in value.items())
    if _is_list(kind):
        return _list_mismatch(value, kind, path)
    bits = 64 if kind is Wide else 63
    if kind in (int, Wide) and _fits(value, kind) and not -(2**63) <= value < 2**bits:
        return path, f"a whole number of at most {bits} bits", value
    return None if _fits(value, kind) else (path, described(kind), value)


def _first(items: Any) -> Mismatch | None:
    return next((found for item, kind, path in items if (found := _mismatch(item, kind, path))), None)


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple, Sequence) or kind in (list, tuple, Sequence)


def _list_mismatch(value: Any, kind: Any, path: tuple[Any, ...]) -> Mismatch | None:
    args = get_args(kind)
    like_a_list = isinstance(value, Sequence) or (hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0)
    if not like_a_list or isinstance(value, str | bytes):
        return path, described(kind), value
    if get_origin(kind) is tuple and args[-1:] != (...,):
        if len(value) != len(args):
            return path, described(kind), value
        return _first((item, each, (*path, i)) for i, (item, each) in enumerate(zip(value, args, strict=True)))
    inner = args[0] if args else Any
    if inner is Any or (inner is float and all(type(item) is float and math.isfinite(item) for item in value)):
        return None  # long lists of numbers, quickly
    return _first((item, inner, (*path, i)) for i, item in enumerate(value))


def _object_mismatch(value: Any, cls: Any, path: tuple[Any, ...]) -> Mismatch | None:
    if not isinstance(value, Mapping):
        return path, described(cls), value
    hints = _hints(cls)
    for spec in dataclasses.fields(cls):
        if spec.name in value:
            if found := _mismatch(value[spec.name], hints[spec.name], (*path, spec.name)):
                return found
        elif spec.default is spec.default_factory is dataclasses.MISSING:
            return (*path, spec.name), described(hints[spec.name]), dataclasses.MISSING
    return None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that has no element types (number, text, ...). NumPy's numbers count as numbers."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in args)
    if kind is None or kind is type(None):
        return value is None
    if kind in (int, Wide):
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float or origin is Annotated:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        try:
            return math.isfinite(value) or kind is Measured or (kind is Unbounded and math.isinf(value))
        except OverflowError:  # a whole number too large for a float
            return False
    if kind is bool:
        return isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True
