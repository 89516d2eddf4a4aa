"""What saved pipelines, configs and adapters record of a class, and what Diffusers looks up by it.

Importing this file imports neither Diffusers nor torch: `import sd_ext` needs its first part.
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
"""What Diffusers looks for on the module that a saved pipeline names, to see what kind of class it is."""


def is_ours(cls: type) -> bool:
    """Whether a class is of this package, and not of another that derives from it."""
    return cls.__module__.partition(".")[0] == "sd_ext"


def record_as_ours(cls: type) -> None:
    """Have saved pipelines record `["sd_ext", name]` for a class of this package, wherever its file may move."""
    if is_ours(cls):
        cls.__module__ = "sd_ext"


def let_be_found(cls: type, base: type) -> None:
    """Have Diffusers find what kind of class one of another package is, on the module that saved pipelines name.

    Args:
        cls: the class.
        base: one of `LOOKED_UP`, which it derives from.
    """
    module = sys.modules.get(cls.__module__)
    if module is not None:
        vars(module).setdefault(base.__name__, base)


declare(
    f"{__name__}.compatibles",
    "_compatibles",
    seen="diffusers 0.41 to 0.42, schedulers.scheduling_utils.SchedulerMixin; named in schedulers/stepping.py",
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
    """Mixin, before ConfigMixin, for classes whose configs are made into one another's."""

    _options: ClassVar[dict[str, Any]] = {}
    """Options of this class, with their defaults."""
    _known: ClassVar[set[str]] = set()
    """Options of any of its siblings."""

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """Sort a config's entries for `from_config`, which calls this.

        Options that only siblings have stay in the config, for when one of those is made from it, without a warning.

        Args:
            config_dict: the config.
            kwargs: options that go before it.

        Returns:
            Arguments of the constructor, entries that nobody knows (Diffusers warns of them), the rest of the config.
        """
        others = {k: v for k, v in config_dict.items() if k in cls._known and k not in cls._options}
        own = {k: v for k, v in config_dict.items() if k not in others}
        init, unknown, rest = super().extract_init_dict(own, **kwargs)  # type: ignore[misc]
        return init, unknown, {**rest, **others}


declare(
    f"{__name__}.bare_constructor",
    "__wrapped__",
    seen="diffusers 0.41 to 0.42, configuration_utils.register_to_config",
    gone="options of U-Net variants in their configs",
)


def bare_constructor(cls: type) -> Callable[..., None]:
    """A class's `__init__` without `register_to_config` around it, which writes the arguments into the config."""
    return inspect.unwrap(cls.__init__)


declare(
    f"{__name__}.write_options",
    "_use_default_values",
    seen="diffusers 0.41 to 0.42, configuration_utils",
    gone="options of U-Net variants that are set to their default, kept when the model is loaded under another class",
)


def write_options(model: Any, options: dict[str, Any]) -> None:
    """Write options into a model's config as chosen ones.

    A config remembers which arguments nobody gave, and drops those when it is loaded under a class with other
    defaults. What is written here is not among them.

    Args:
        model: changed in place.
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
    """Have `set_adapters` take strengths by block, as `{"down": 0.5}`, for a class as for the class it stands for."""
    from diffusers.loaders.peft import _SET_ADAPTER_SCALE_FN_MAPPING as by_name

    by_name[cls.__name__] = by_name[plain.__name__]
