"""Samplers by the names people know them by."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from .base import TableScheduler
from .info import SamplerInfo
from .samplers import FAMILIES
from .spelling import key

CARRIED: dict[str, SamplerInfo] = {}
"""Samplers that are made of what a model's scheduler config carries, by name; each puts itself here. They have grids of
their own, and are not listed, since most models have none.
"""

GROUP = "sd_ext.samplers"
"""Entry-point group in which other packages publish a `SamplerInfo`, or several."""


def _published(point: EntryPoint) -> list[SamplerInfo]:
    """What one entry point offers; a broken one is reported and left out, so that it cannot break the others."""
    try:
        value = point.load()
        infos = [value] if isinstance(value, SamplerInfo) else list(value)
        for info in infos:
            if not (isinstance(info, SamplerInfo) and issubclass(info.cls, TableScheduler)):
                raise TypeError(f"expected a SamplerInfo of a TableScheduler class, got {info!r}")
    except Exception as error:
        warnings.warn(f"the sampler plugin {point.value!r} cannot be used: {error!r}", stacklevel=2)
        return []
    return infos


@lru_cache(maxsize=1)
def all_samplers() -> dict[str, SamplerInfo]:
    """Every sampler by name: the package's, then those of other packages. One whose name the package has, or another
    plugin, is left out with a warning.
    """
    known = {info.name: info for family in FAMILIES for info in family.SAMPLERS}
    taken = set(spellings(known.values()))
    for point in entry_points(group=GROUP):
        for info in _published(point):
            if key(info.name) in taken:
                warnings.warn(f"the sampler plugin {point.value!r} offers {info.name!r}, which is taken", stacklevel=2)
                continue
            known[info.name] = info
            taken.add(key(info.name))
    return known


def list_samplers() -> list[SamplerInfo]:
    """Every sampler, in the order of the table of `sd-ext samplers`."""
    return list(all_samplers().values())


def _is_default(info: SamplerInfo) -> bool:
    """Whether this sampler is what its class is without options."""
    return all(info.cls._options[name] == value for name, value in info.options.items())


def spellings(infos: Iterable[SamplerInfo]) -> dict[str, SamplerInfo]:
    """Every spelling: names, then aliases, then class names, which stand for the sampler of the class's defaults."""
    infos = list(infos)
    names = {key(info.name): info for info in infos}
    for info in infos:
        for alias in info.aliases:
            names.setdefault(key(alias), info)
    for info in sorted(infos, key=_is_default, reverse=True):
        names.setdefault(key(info.cls.__name__), info)
    return names
