from __future__ import annotations

import pytest

from sd_ext.schedulers import NoiseSchedule

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
