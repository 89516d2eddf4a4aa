"""All settings of a script: a config has groups of settings as fields, and gives access to each setting by name.

    class LoraConfig(DiffusionConfig):
        adapters: AdapterSettings = AdapterSettings()
        optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-4)    # the script's own default

    config = LoraConfig.of(rank=4, steps=100)         # settings are found by name, in whichever group they are
    config.adapters.rank                              # code reads a setting from its group

A setting's name is unique among all groups of a script, so flags and TOML files do not mention groups.
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
    """Base class of every script's settings. Each field is a group of settings, its default the script's defaults."""

    section: ClassVar[str] = ""  # the table of a recipe file that holds these settings
    presets: ClassVar[dict[str, str]] = {}  # preset name -> recipe file; a preset's name may replace CONFIG.toml
    plan: ClassVar[str] = ""  # "module:function" that returns the lines of a run's plan, for --dry-run

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The script's defaults, except for the given settings.

        Args:
            values: setting name -> value.

        Raises:
            UnknownNameError: a name is no setting; suggests the closest.
            InputError: a value is not allowed, or settings contradict each other.
        """
        return cls().change(**values)

    def change(self, **values: Any) -> Self:
        """A copy of this config with other values of the given settings.

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
        """The settings that affect the result of a run, so that they must not change when it is resumed.

        Returns:
            Setting name -> JSON value, with lists in place of tuples.
        """
        known = every_setting(type(self))
        decisive = {name: value for name, value in self.values().items() if not known[name].meta["free"]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in decisive.items()}

    @classmethod
    def epilog(cls) -> str:
        """The text that `--help` shows after the settings."""
        return ""

    def notes(self) -> dict[str, str]:
        """Setting name -> remark on its value, shown by `--dry-run`."""
        return {}


@dataclass(frozen=True)
class Setting:
    """The description of one setting of a script.

    Args:
        name: its name in Python and TOML; the flag is `--name` with - for _.
        group: the field of the script's `Config` that holds the setting's group.
        heading: the first line of the group's docstring, a heading of `--help`.
        kind: its type.
        default: the script's default.
        meta: the arguments of `setting`, by name.
    """

    name: str
    group: str
    heading: str
    kind: Any
    default: Any
    meta: Mapping[str, Any]

    @property
    def help(self) -> str:
        """The line of help."""
        return now(self.meta["help"])

    @property
    def choices(self) -> Sequence[str]:
        """The allowed texts; empty if any is allowed."""
        return now(self.meta["choices"])


@cache
def every_setting(cls: type[Config]) -> dict[str, Setting]:
    """The descriptions of all settings of a script, by name, in the order of its groups.

    Raises:
        TypeError: two groups have a setting of the same name.
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

    Args:
        cls: the script's config class.
        names: the names.
        where: their source, for the message.

    Raises:
        UnknownNameError: a name is no setting; suggests the closest.
    """
    known = every_setting(cls)
    if unknown := sorted(set(names) - set(known)):
        raise UnknownNameError(f"setting in {where}:", unknown[0], known)
