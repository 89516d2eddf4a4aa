"""The recommended sampler is UniPC on eps, on the grid and of the order that the number of calls asks for."""

from __future__ import annotations

import numpy as np
import pytest

import sd_ext

from ..conftest import SD


@pytest.mark.parametrize(
    "calls, twin", [(1, "unipc eps lambda_uniform"), (5, "unipc eps lambda_uniform"), (10, "unipc eps lambda_uniform"),
                    (11, "unipc 3 eps karras"), (50, "unipc 3 eps karras")]
)  # fmt: skip
def test_auto_is_its_twin(calls, twin):
    ours, other = sd_ext.make_scheduler("auto", SD), sd_ext.make_scheduler(twin, SD)
    ours.set_timesteps(calls)
    other.set_timesteps(calls)
    np.testing.assert_array_equal(ours.timesteps, other.timesteps)
    np.testing.assert_array_equal(ours.table().rows, other.table().rows)


@pytest.mark.parametrize("config, grid", [({"grid": "ays"}, "ays"), ({"use_karras_sigmas": True}, "karras")])
def test_a_named_grid_goes_before_its_own(config, grid):
    ours, other = sd_ext.make_scheduler("auto", {**SD, **config}), sd_ext.make_scheduler("unipc eps", SD, grid=grid)
    for scheduler in (ours, other):
        scheduler.set_timesteps(8)
    np.testing.assert_array_equal(ours.timesteps, other.timesteps)
