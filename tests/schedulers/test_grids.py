from __future__ import annotations

import diffusers
import numpy as np
import pytest

import sd_ext
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers.grids import AYS, GRIDS, align_your_steps, get_grid

from .conftest import SD


@pytest.mark.parametrize("grid", sorted(GRIDS))
@pytest.mark.parametrize("calls", [1, 2, 5, 20, 50, 200])
def test_every_grid_places_every_count(grid, calls):
    scheduler = sd_ext.make_scheduler("dpm++ 2m", grid=grid)
    scheduler.set_timesteps(calls)
    levels = scheduler._plan.levels
    assert len(scheduler.timesteps) == calls
    assert np.all(np.diff(levels.ratio) < 0)
    assert levels.sigma[-1] == 0
    assert levels.t[-2] >= 0 and levels.t[0] <= 999


DIFFUSERS_FLAGS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]


@pytest.mark.parametrize("flags", DIFFUSERS_FLAGS, ids=str)
@pytest.mark.parametrize("calls", [7, 20, 50])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_sigmas_equal_diffusers(name, calls, flags):
    spacing = "linspace" if flags else "trailing"
    theirs, ours = (getattr(lib, name)(**SD, **flags, timestep_spacing=spacing) for lib in (diffusers, sd_ext))
    theirs.set_timesteps(calls)
    ours.set_timesteps(calls)
    np.testing.assert_allclose(ours.sigmas.numpy(), theirs.sigmas.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
@pytest.mark.parametrize("calls", [5, 20, 30, 50])
def test_timesteps_equal_diffusers(name, spacing, calls):
    theirs, ours = (getattr(lib, name)(**SD, timestep_spacing=spacing, steps_offset=1) for lib in (diffusers, sd_ext))
    theirs.set_timesteps(calls)
    ours.set_timesteps(calls)
    np.testing.assert_allclose(ours.timesteps.numpy(), theirs.timesteps.numpy(), rtol=1e-6)


def test_align_your_steps_has_the_published_steps():
    np.testing.assert_allclose(align_your_steps(10), AYS["sd"][:-1], rtol=1e-12)
    np.testing.assert_allclose(align_your_steps(20)[::2], AYS["sd"][:-1], rtol=1e-12)


def test_ratio_grids_do_not_depend_on_the_spacing():
    """Deviation from Diffusers, whose Euler takes the ends of its Karras grid from timestep_spacing."""
    theirs, ours = (
        lib.EulerDiscreteScheduler(**SD, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1)
        for lib in (diffusers, sd_ext)
    )
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20)
    assert float(theirs.sigmas[0]) == pytest.approx(11.03, abs=0.01)
    assert float(ours.sigmas[0]) == pytest.approx(14.615, abs=0.001)


def test_karras_keeps_fractional_timesteps_distinct():
    """Deviation from Diffusers, whose 50-call Karras grid repeats a rounded timestep (#12771, #5433)."""
    ours = sd_ext.make_scheduler("dpm++ 2m karras")
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(50)
    assert len(set(theirs.timesteps.tolist())) < 50
    assert len(set(ours.timesteps.tolist())) == 50


def test_a_grid_that_ends_where_the_run_ends_does_not_waste_a_call():
    """Deviation from Diffusers, whose last step then has length zero: residual noise on SDXL (#6295, #6477)."""
    ours = sd_ext.make_scheduler("dpm++ 2m karras", final_sigmas_type="sigma_min")
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True, final_sigmas_type="sigma_min")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert theirs.sigmas[-1] == theirs.sigmas[-2]
    assert ours.sigmas[-1] < 0.9 * ours.sigmas[-2]
    assert len(ours.timesteps) == 10


def test_names_are_forgiving_and_unknown_ones_list_the_closest():
    assert get_grid("Lambda-Uniform").name == "lambda_uniform"
    with pytest.raises(UnknownNameError, match="'karras'"):
        get_grid("karas")


def test_too_many_steps_for_whole_timesteps_is_an_error():
    scheduler = sd_ext.DDIMScheduler(**SD, timestep_spacing="leading", steps_offset=600)
    with pytest.raises(InputError, match="cannot place 5"):
        scheduler.set_timesteps(5)
