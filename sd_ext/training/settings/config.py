"""All settings of a script: groups side by side, and their settings by name.

    class LoraConfig(DiffusionConfig):
        adapters: AdapterSettings = AdapterSettings()
        optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-4)    # the script's own default

    config = LoraConfig.of(rank=4, steps=100)         # by name, whichever group a setting is in
    config.adapters.rank                              # a component is given `config.adapters`, and reads it there

Names are unique over the groups of a script, so flags and TOML files need not know of groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, ClassVar, get_type_hints

from typing_extensions import Self

from sd_ext.errors import UnknownNameError
from sd_ext.training.settings.setting import now


@dataclass(frozen=True)
class Config:
    """Base of every script's settings. Each field is a group; its default holds the script's defaults."""

    section: ClassVar[str] = ""  # the table of a recipe file that holds these settings
    presets: ClassVar[dict[str, str]] = {}  # names of recipe files that can stand in place of a file of settings
    plan: ClassVar[str] = ""  # "module:function" from settings to the lines that say what a run would do

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The script's defaults but for these settings, given by name.

        Raises:
            UnknownNameError: a name that is no setting; gives the closest.
            InputError: a value that cannot be, or settings that contradict each other.
        """
        return cls().change(**values)

    def change(self, **values: Any) -> Self:
        """The same with other values of the settings named.

        Raises:
            UnknownNameError, InputError: see `of`.
        """
        check_names(type(self), values, "settings")
        changed: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            changed.setdefault(every_setting(type(self))[name].group, {})[name] = value
        return replace(self, **{group: getattr(self, group).change(**own) for group, own in changed.items()})

    def values(self) -> dict[str, Any]:
        """Every setting's value, by name."""
        return {name: getattr(getattr(self, each.group), name) for name, each in every_setting(type(self)).items()}

    def result_settings(self) -> dict[str, Any]:
        """The settings that change a run's result: those a resumed run must share with the one it continues.

        Returns:
            What JSON can hold: lists in place of tuples.
        """
        known = every_setting(type(self))
        decisive = {name: value for name, value in self.values().items() if not known[name].meta["free"]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in decisive.items()}

    @classmethod
    def epilog(cls) -> str:
        """What `--help` says after the settings."""
        return ""

    def notes(self) -> dict[str, str]:
        """Setting -> why it has its value, where that is not plain; a dry run shows it."""
        return {}


@dataclass(frozen=True)
class Setting:
    """What is known of one setting of a script.

    Args:
        name: in Python and TOML; its flag is `--name` with - for _.
        group: the field of the script's `Config` that holds it.
        heading: what the group is about, in a few words.
        kind: its type.
        default: the script's.
        meta: what `setting` was given, by name.
    """

    name: str
    group: str
    heading: str
    kind: Any
    default: Any
    meta: Mapping[str, Any]

    @property
    def help(self) -> str:
        """One line, made anew where it comes from a table."""
        return now(self.meta["help"])

    @property
    def choices(self) -> Sequence[str]:
        """The texts allowed; empty for any."""
        return now(self.meta["choices"])


@cache
def every_setting(cls: type[Config]) -> dict[str, Setting]:
    """The settings of a script by name, in the order of its groups.

    Raises:
        TypeError: two groups have a setting of the same name, which would be one flag.
    """
    found: dict[str, Setting] = {}
    for group in fields(cls):
        defaults: Any = group.default
        kinds = get_type_hints(type(defaults))
        for spec in fields(defaults):
            if spec.name in found:
                raise TypeError(f"{cls.__name__}: {spec.name} is in both {found[spec.name].group} and {group.name}")
            heading = (type(defaults).__doc__ or group.name).splitlines()[0].rstrip(".")
            default = getattr(defaults, spec.name)
            found[spec.name] = Setting(spec.name, group.name, heading, kinds[spec.name], default, spec.metadata)
    return found


def check_names(cls: type[Config], names: Iterable[str], where: str) -> None:
    """Refuse names that are no settings of a script.

    Raises:
        UnknownNameError: gives the closest.
    """
    known = every_setting(cls)
    if unknown := sorted(set(names) - set(known)):
        raise UnknownNameError(f"setting in {where}:", unknown[0], known)
