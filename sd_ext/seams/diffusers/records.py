"""What saved pipelines, configs and adapters record about a class, and what Diffusers looks up by it.

Importing this file imports neither Diffusers nor torch, since `import sd_ext` needs `LOOKED_UP`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from ..seam import declare, seam

# ---- classes ---------------------------------------------------------------------------------------------------------

declare(
    f"{__name__}.record_as_ours",
    "__module__",
    seen="diffusers 0.41 to 0.42, pipelines.pipeline_loading_utils",
    gone="loading pipelines that were saved with classes of this package",
)

LOOKED_UP = ("SchedulerMixin", "ModelMixin")
"""Base classes that Diffusers looks up in the module named by a saved pipeline, to classify the classes in it."""


def is_ours(cls: type) -> bool:
    """Whether a class is defined in this package, not in another package as a subclass of ours."""
    return cls.__module__.partition(".")[0] == "sd_ext"


def record_as_ours(cls: type) -> None:
    """Make saved pipelines record a class of this package as `["sd_ext", name]`, so that its file may be moved."""
    if is_ours(cls):
        cls.__module__ = "sd_ext"


def let_be_found(cls: type, base: type) -> None:
    """Make `base` available in the module of `cls`, where Diffusers looks for it when it loads a saved pipeline.

    For subclasses in other packages, whose modules do not import the base class.

    Args:
        cls: the class.
        base: the class from `LOOKED_UP` that it derives from.
    """
    module = sys.modules.get(cls.__module__)
    if module is not None:
        vars(module).setdefault(base.__name__, base)


declare(
    f"{__name__}.compatibles",
    "_compatibles",
    seen="diffusers 0.41 to 0.42, schedulers.scheduling_utils.SchedulerMixin; named in schedulers/announced.py",
    gone="options of other schedulers, kept in a config for a change of scheduler",
)

# ---- configs ---------------------------------------------------------------------------------------------------------

declare(
    f"{__name__}.SiblingOptions",
    "extract_init_dict",
    seen="diffusers 0.41 to 0.42, configuration_utils.ConfigMixin",
    gone="options of sibling schedulers, kept in a config without a warning",
)


class SiblingOptions:
    """Mixin, to stand before ConfigMixin, for classes that can be built from one another's configs."""

    _options: ClassVar[dict[str, Any]] = {}
    """The options of this class, with their defaults."""
    _known: ClassVar[set[str]] = set()
    """The options of all such classes together."""

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Sort a config's entries; called by `from_config`.

        Options that only sibling classes have are kept in the config, without a warning, for building a sibling from it
        later.

        Args:
            config_dict: the config.
            kwargs: options that take precedence over it.

        Returns:
            Arguments for the constructor; entries that are unknown, of which Diffusers warns; and the entries that are
            only kept in the config.
        """
        others = {k: v for k, v in config_dict.items() if k in cls._known and k not in cls._options}
        own = {k: v for k, v in config_dict.items() if k not in others}
        defaults = config_dict.get("_use_default_values", ())  # what nobody chose is not handed on, as in Diffusers
        others = {k: v for k, v in others.items() if k not in defaults}
        init, unknown, rest = super().extract_init_dict(own, **kwargs)  # type: ignore[misc]
        return init, unknown, {**rest, **others}


declare(
    f"{__name__}.bare_constructor",
    "__wrapped__",
    seen="diffusers 0.41 to 0.42, configuration_utils.register_to_config",
    gone="options of U-Net variants in their configs",
)


def bare_constructor(cls: type) -> Callable[..., None]:
    """A class's `__init__` without the decorator `register_to_config`, which writes the arguments into the config."""
    return inspect.unwrap(cls.__init__)


declare(
    f"{__name__}.write_options",
    "_use_default_values",
    seen="diffusers 0.41 to 0.42, configuration_utils",
    gone="options of U-Net variants that are set to their default, kept when the model is loaded under another class",
)


def write_options(model: Any, options: dict[str, Any]) -> None:
    """Write options into a model's config as if they had been passed explicitly.

    A config records which arguments were left at their defaults; these are dropped when it is loaded under a class with
    other defaults. Options written here are not dropped.

    Args:
        model: changed in place.
        options: the options by name.
    """
    config = model.config
    # IP-Adapter loading sets attributes of the config beside its items.
    beside = {k: v for k, v in vars(config).items() if k in config and config[k] is not v}
    defaulted = [name for name in config.get("_use_default_values", []) if name not in options]
    model.register_to_config(**options, _use_default_values=defaulted)
    for name, value in beside.items():
        setattr(model.config, name, value)


# ---- adapters --------------------------------------------------------------------------------------------------------


@seam(
    "_SET_ADAPTER_SCALE_FN_MAPPING",
    seen="diffusers 0.41 to 0.42, loaders.peft",
    gone="strengths of a LoRA by block, on U-Net variants,",
)
def expand_strengths_as(cls: type, plain: type) -> None:
    """Make `set_adapters` accept strengths by block, such as `{"down": 0.5}`, for the class `cls` as for `plain`.

    Args:
        cls: a subclass, which Diffusers does not know by name.
        plain: the class of Diffusers that it stands for.
    """
    from diffusers.loaders.peft import _SET_ADAPTER_SCALE_FN_MAPPING as by_name

    by_name[cls.__name__] = by_name[plain.__name__]
