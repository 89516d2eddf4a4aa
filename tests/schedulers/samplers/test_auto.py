"""The recommended sampler is the one that the guidance and the number of calls ask for."""

from __future__ import annotations

from math import inf

import numpy as np

import sd_ext
from sd_ext.schedulers.samplers.auto import CHOICES

from ..conftest import SD
from ..over import over

TWINS = [
    (min(strength, 9.0), int(min(choice.calls, 60)), f"{choice.solver} {choice.grid}")
    for strength, choices in CHOICES.items()
    for choice in choices
]


@over("guidance, calls, twin", TWINS)
def test_auto_is_the_sampler_of_that_name_on_the_grid_of_that_name(guidance, calls, twin):
    ours, other = sd_ext.make_scheduler("auto", SD, guidance_scale=guidance), sd_ext.make_scheduler(twin, SD)
    ours.set_timesteps(calls)
    other.set_timesteps(calls)
    np.testing.assert_array_equal(ours.timesteps, other.timesteps)
    np.testing.assert_array_equal(ours.table().rows, other.table().rows)


def test_every_guidance_and_count_has_a_choice():
    assert list(CHOICES) == sorted(CHOICES) and list(CHOICES)[-1] == inf
    for choices in CHOICES.values():
        counts = [choice.calls for choice in choices]
        assert counts == sorted(set(counts)) and counts[-1] == inf


@over("config, grid", [({"grid": "ays"}, "ays"), ({"use_karras_sigmas": True}, "karras")])
def test_a_named_grid_goes_before_its_own(config, grid):
    ours, other = sd_ext.make_scheduler("auto", {**SD, **config}), sd_ext.make_scheduler("unipc", SD, grid=grid)
    for scheduler in (ours, other):
        scheduler.set_timesteps(8)
    np.testing.assert_array_equal(ours.timesteps, other.timesteps)
    np.testing.assert_array_equal(ours.table().rows, other.table().rows)
