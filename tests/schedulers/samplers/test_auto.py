"""The recommended sampler is the one that the guidance and the number of calls ask for."""

from __future__ import annotations

import numpy as np

import sd_ext

from ..conftest import SD
from ..over import over

TWINS = [
    (7.5, 8, "dpm++ 2s lambda_uniform"),
    (2.5, 30, "dpm++ 2s lambda_uniform"),
    (2.0, 1, "unipc eps lambda_uniform"),
    (1.0, 10, "unipc eps lambda_uniform"),
    (1.5, 11, "unipc 3 eps karras"),
    (1.5, 50, "unipc 3 eps karras"),
]


@over("guidance, calls, twin", TWINS)
def test_auto_is_its_twin(guidance, calls, twin):
    ours = sd_ext.make_scheduler("auto", SD, guidance_scale=guidance)
    other = sd_ext.make_scheduler(twin, SD)
    ours.set_timesteps(calls)
    other.set_timesteps(calls)
    np.testing.assert_array_equal(ours.timesteps, other.timesteps)
    np.testing.assert_array_equal(ours.table().rows, other.table().rows)


@over("config, grid", [({"grid": "ays"}, "ays"), ({"use_karras_sigmas": True}, "karras")])
def test_a_named_grid_goes_before_its_own(config, grid):
    ours, other = sd_ext.make_scheduler("auto", {**SD, **config}), sd_ext.make_scheduler("dpm++ 2s", SD, grid=grid)
    for scheduler in (ours, other):
        scheduler.set_timesteps(8)
    np.testing.assert_array_equal(ours.timesteps, other.timesteps)
