from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import sd_ext
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.export import export

from .mixture import Mixture

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="session")
def schedule() -> NoiseSchedule:
    """Stable Diffusion's training schedule."""
    return NoiseSchedule.from_config(SD)


@pytest.fixture(scope="session")
def mixture() -> Mixture:
    """Five components in four dimensions."""
    return Mixture.random(5, 4, seed=0)


@pytest.fixture(scope="session")
def exported_file(tmp_path_factory) -> Iterator[ModuleType]:
    """The module that an export writes, imported from where it was written."""
    folder = export(sd_ext.make_scheduler("ddim"), tmp_path_factory.mktemp("module") / "scheduler", 1)
    spec = importlib.util.spec_from_file_location("a_pipelines_own_module", folder / "exported_scheduler.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules[spec.name]
