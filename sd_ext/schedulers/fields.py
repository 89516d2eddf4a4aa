"""Scheduler options as annotated class fields.

A scheduler class states its options the way a dataclass does; the constructor Diffusers' ConfigMixin needs, with an
explicit signature whose every argument lands in the config, is made from them. Options of the base class are inherited,
so no constructor repeats them. A value must be of the type that the field declares (see `sd_ext.declared`).
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, get_origin

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from typing_extensions import dataclass_transform

from ..declared import check
from ..seams.diffusers.records import SiblingOptions


def _is_option(name: str, annotation: Any) -> bool:
    """Whether an annotated field is an option: public, and of the instance."""
    text = annotation if isinstance(annotation, str) else ""
    return not name.startswith("_") and get_origin(annotation) is not ClassVar and not text.startswith("ClassVar")


def _resolved(cls: type, annotation: Any) -> Any:
    """The type an annotation means; `Any` for one whose names only type checkers see, which cannot be checked."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, vars(sys.modules.get(cls.__module__, builtins)))
    except NameError:
        return Any


@dataclass_transform(kw_only_default=False)
class OptionFields(SiblingOptions):
    """Turns annotated fields of subclasses into constructor arguments; mix in before ConfigMixin."""

    _kinds: ClassVar[dict[str, Any]] = {}
    """The declared type of each option."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        options, kinds = dict(cls._options), dict(cls._kinds)
        for name, annotation in inspect.get_annotations(cls).items():
            if _is_option(name, annotation) and name in cls.__dict__:
                options[name], kinds[name] = cls.__dict__[name], _resolved(cls, annotation)
                # The value in use is config[name]; a class attribute would shadow it with the default.
                delattr(cls, name)
        cls._options, cls._kinds = options, kinds
        cls._known.update(options)
        cls.__init__ = _constructor(options, [name for name in cls._positional() if name in options])

    @classmethod
    def _positional(cls) -> Sequence[str]:
        """The options that may be given by position, in their order; none for all, in the order of their fields."""
        return ()


def _constructor(options: dict[str, Any], positional: Sequence[str]) -> Any:
    """An `__init__` with these options, by name and default, in its signature. It checks their types, lets Diffusers
    write them into the config, and then calls `_setup`, which reads them there.

    Args:
        options: name and default.
        positional: those that come first; the others are by keyword only. None: all are by position.
    """
    either, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = dict.fromkeys(positional or options, either) | {name: named for name in options if positional}
    kinds = {name: either if name in positional else kind for name, kind in names.items()}
    parameters = [inspect.Parameter("self", either)] + [
        inspect.Parameter(name, kind, default=options[name]) for name, kind in kinds.items()
    ]
    signature = inspect.Signature(parameters)

    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        for name, kind in self._kinds.items():
            if name in given:
                check(given[name], kind, type(self).__name__, name)
        self._setup()

    checked.__signature__ = signature  # type: ignore[attr-defined]
    registered = register_to_config(checked)

    @functools.wraps(registered, assigned=())
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        registered(self, *map(as_list, args), **{name: as_list(value) for name, value in kwargs.items()})

    return __init__


def as_list(value: Any) -> Any:
    """A value that a config holds: arrays and tensors, which Diffusers takes for lists of numbers, as lists."""
    return value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value
