"""Options as fields of dataclasses, and a typer command made from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import typer

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What `--help` says about a field. The option's name is the field's, with hyphens.

    Args:
        help: one sentence.
        metavar: what stands for the value; None for a switch.
        shown: the default in words, where the field's default is None.
        flag: the name, if it is not the field's.
        values: the values that a shell offers.
        path: whether the shell completes file names.
    """

    help: str
    metavar: str | None = None
    shown: str | None = None
    flag: str | None = None
    values: Sequence[str] = ()
    path: bool = False


class Group:
    """Base of the dataclasses whose fields are options."""

    title: ClassVar[str]  # heads the group in `--help`


@dataclass(frozen=True)
class Declared:
    """One option as it was declared.

    Args:
        name: the field's.
        kind: the field's type.
        option: what help says.
        title: the group's.
        default: the value if it is not given.
    """

    name: str
    kind: Any
    option: Option
    title: str
    default: Any

    @property
    def flag(self) -> str:
        """As it is written in a command: "--negative"."""
        return self.option.flag or "--" + self.name.replace("_", "-")


def declared(group: type) -> Iterator[Declared]:
    """Every option of a dataclass, in the order of its groups. Fields without an `Option` are left out."""
    hints = get_type_hints(group, include_extras=True)
    titles = {
        name: cls.title
        for cls in group.__mro__
        if issubclass(cls, Group) and "title" in vars(cls)
        for name in vars(cls).get("__annotations__", {})
    }
    for field in fields(group):
        if get_origin(hints[field.name]) is Annotated:
            kind, option = get_args(hints[field.name])
            default = None if field.default is MISSING else field.default
            yield Declared(field.name, kind, option, titles[field.name], default)


def with_options(*groups: type, without: Collection[str] = ()) -> Callable[[F], F]:
    """Give a function, which takes `**given`, one option for every field of the groups, as typer reads them.

    The function then gets each option's value by its field's name: None, or an empty list, where it was not given. Of
    a name that several groups have, the option is the first group's.

    Args:
        groups: dataclasses.
        without: names of fields that get no option.
    """

    def decorate(function: F) -> F:
        # Not typing.get_type_hints: on Python 3.10 that makes `Annotated[X | None, ...] = None` an Optional[Annotated].
        own = inspect.signature(function, eval_str=True).parameters.values()
        parameters = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        named: dict[str, Declared] = {}
        for each in (each for group in groups for each in declared(group) if each.name not in without):
            named.setdefault(each.name, each)
        parameters += map(_parameter, named.values())
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return function

    return decorate


def given(group: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a group's options that were given, lists as tuples.

    Args:
        group: a dataclass.
        values: all that typer gave, for any number of groups.
    """
    found = {each.name: values.get(each.name) for each in declared(group)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in found.items()
        if value is not None and value != []
    }


def _parameter(each: Declared) -> inspect.Parameter:
    """The parameter by which typer learns of an option. Its default is always None: not given."""
    kind, option = each.kind, each.option
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    shown = option.shown or (str(each.default) if each.default not in (None, "", False, ()) else False)
    described = typer.Option(
        each.flag,
        help=option.help,
        metavar=option.metavar,
        show_default=shown,
        rich_help_panel=each.title,
        autocompletion=_offering(option.values) if option.values else None,
    )
    annotation = Annotated[kind | None, described]  # type: ignore[valid-type]
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _offering(values: Sequence[str]) -> Callable[[str], list[str]]:
    """A function for the shell: the values that begin with what has been typed."""

    def offered(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return offered
