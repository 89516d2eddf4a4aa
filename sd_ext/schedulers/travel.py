"""Configs that other programs read: our name of a grid with Diffusers' beside it, and JSON without infinities.

A grid has a name of ours, `grid`, which goes before Diffusers' flags. Where Diffusers has the same grid its flag is
written beside it, so that its own classes take the same steps from our config.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, get_args

from diffusers.utils import logging

from ..errors import InputError
from .grids import get_grid

logger = logging.get_logger(__name__)

FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigmas",
    "use_lu_lambdas": "exponential",  # Diffusers' Lu grid is even in log sigma with both ends
}
"""Diffusers' flags, and the grids they stand for."""

SPACINGS = ("linspace", "leading", "trailing")
"""Grids that Diffusers calls `timestep_spacing`."""


def check_flags(config: Mapping[str, Any]) -> None:
    """Refuse flags of several grids, as Diffusers does; where `grid` is given it goes before them.

    Raises:
        InputError: names the flags.
    """
    both = [flag for flag in FLAGS if config[flag] and flag != "use_lu_lambdas"]
    if config["grid"] is None and len(both) > 1:
        raise InputError(f"{' and '.join(both)} are set, and a run has one grid: switch off all but one")


def unbounded(options: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """Options whose default is infinite, which strict JSON cannot write, where a config from a file leaves them out."""
    if "_use_default_values" in config:  # it is a scheduler's own, and says so
        return {}
    infinite = {name: value for name, value in options.items() if isinstance(value, float) and math.isinf(value)}
    return {name: value for name, value in infinite.items() if name not in config}


def unsaid(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A class's options at their defaults where the config of another class says None, for which this one has no use:
    a sampler that asks the pipeline for its guidance says so about an option that others take as a number.

    Args:
        cls: the scheduler class that is made, with `_options` and `_kinds`.
        config: of any scheduler.
    """
    if config.get("_class_name") in (None, cls.__name__):
        return {}
    kinds = {name: kind for name, kind in cls._kinds.items() if name in config and config[name] is None}
    return {name: cls._options[name] for name, kind in kinds.items() if type(None) not in get_args(kind)}


def beside(config: Mapping[str, Any]) -> dict[str, Any]:
    """What to write beside `grid`, so that Diffusers' classes place the same grid.

    The flags of other grids are cleared, since `grid` goes before them. Diffusers' Euler family takes the ends of a
    grid of sigmas from `timestep_spacing`; only "linspace" has the model's own ends.

    Args:
        config: a scheduler's.

    Returns:
        Options by name, those that the config has already left out; none without a grid.
    """
    if config["grid"] is None:
        return {}
    grid = get_grid(config["grid"])
    flow = config["use_flow_sigmas"] or config["prediction_type"] == "flow_prediction"
    own = grid.own_options(config["grid_options"] or {})
    same = not flow and own == dict(grid.options)  # on flow, theirs are about another sigma
    wanted: dict[str, Any] = dict.fromkeys(FLAGS, False)
    if flag := next((flag for flag, name in FLAGS.items() if same and name == grid.name), None):
        wanted |= {flag: True, "timestep_spacing": "linspace"}
    elif grid.name in SPACINGS:
        wanted["timestep_spacing"] = grid.name
    unsaid = config.get("_use_default_values", ())
    return {k: v for k, v in wanted.items() if config[k] != v or (k in unsaid and v is not False)}


def newest(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options given to `from_config`, with what they say of the grid put before what the config says of it.

    A flag of Diffusers' takes the place of the config's grid, or, if it is switched off, ends that grid. `grid=None`
    ends the flags that were written beside a grid.

    Args:
        config: the config.
        options: what goes before it, by name.
    """
    named = config.get("grid")
    if named is None:
        return dict(options)
    if "grid" in options:
        off = {flag: False for flag in FLAGS if config.get(flag)} if options["grid"] is None else {}
        return {**off, **options}
    given = {flag: options[flag] for flag in FLAGS if flag in options}
    if any(given.values()):
        return {**{flag: False for flag in FLAGS if config.get(flag)}, **options, "grid": None}
    if any(get_grid(named).name == FLAGS[flag] for flag in given):
        return {**options, "grid": None, **{flag: False for flag in FLAGS if config.get(flag)}}
    return dict(options)


def strict(text: str, defaults: Mapping[str, Any]) -> str:
    """A config's JSON text without infinities and NaN, which are not JSON.

    Args:
        text: as Diffusers writes it.
        defaults: options that have an infinite default, and mean it when they are left out.
    """
    if "Infinity" not in text and "NaN" not in text:
        return text
    config = json.loads(text)
    kept = {name: value for name, value in config.items() if _is_json(value)}
    lost = sorted(
        name for name in config.keys() - kept.keys() if name not in defaults or config[name] != defaults[name]
    )
    if lost:
        logger.warning(f"{', '.join(lost)} cannot be saved in JSON, which has no infinite numbers, and is left out")
    return json.dumps(kept, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return not isinstance(value, float) or math.isfinite(value)
