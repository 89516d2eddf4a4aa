from __future__ import annotations

import itertools
import math

import diffusers
import numpy as np
import pytest

import sd_ext
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers.grids import AYS, GITS, GRIDS, align_your_steps, get_grid, gits, spellings

from .conftest import SD
from .grid_definitions import COUNTS, DEFINITIONS, HIGH, LOW, SIGMAS, bong, mochi, place, ramp
from .over import over


@over("grid", sorted(GRIDS))
@over("calls", [1, 2, 5, 20, 50, 200])
def test_every_grid_places_every_count(grid, calls):
    scheduler = sd_ext.make_scheduler("dpm++ 2m", grid=grid)
    scheduler.set_timesteps(calls)
    levels = scheduler.levels
    assert len(scheduler.timesteps) == calls
    assert np.all(np.diff(levels.ratio) < 0)
    assert levels.sigma[-1] == 0
    assert levels.t[-2] >= 0 and levels.t[0] <= 999


DIFFUSERS_FLAGS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]


@over("flags", DIFFUSERS_FLAGS)
@over("calls", [7, 20, 50])
@over("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_sigmas_equal_diffusers(name, calls, flags):
    spacing = "linspace" if flags else "trailing"
    theirs, ours = (getattr(lib, name)(**SD, **flags, timestep_spacing=spacing) for lib in (diffusers, sd_ext))
    theirs.set_timesteps(calls)
    ours.set_timesteps(calls)
    np.testing.assert_allclose(ours.sigmas.numpy(), theirs.sigmas.numpy(), rtol=2e-5, atol=1e-6)


@over("spacing", ["leading", "trailing", "linspace"])
@over("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
@over("calls", [5, 20, 30, 50])
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


@over("name", DEFINITIONS)
def test_grid_equals_its_definition(name):
    for n in COUNTS:
        np.testing.assert_allclose(place(name, n).ratio[:-1], DEFINITIONS[name](n), rtol=1e-9, err_msg=str(n))


def test_the_definitions_differ_from_each_other():
    """So that passing one is not passing another, save for those that are one grid."""
    same = {frozenset(("normal", "uniform")), frozenset(("exponential", "polyexponential"))}
    for one, other in itertools.combinations(DEFINITIONS, 2):
        close = np.allclose(DEFINITIONS[one](10), DEFINITIONS[other](10), rtol=1e-3)
        assert close == (frozenset((one, other)) in same), (one, other)


def test_ddim_uniform_is_the_whole_list_where_the_list_has_n_steps():
    """Where it is longer (31 steps for 30 asked), ours are its n lowest."""
    for n in range(1, 51):
        whole = SIGMAS[1 :: 1000 // n][::-1]
        np.testing.assert_allclose(place("ddim_uniform", n).ratio[:-1], whole[len(whole) - n :], rtol=1e-12)


VARIANTS = {
    "sd": SD,
    "sd zero-snr": {**SD, "rescale_betas_zero_snr": True},
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "flow": {"use_flow_sigmas": True},
    "flow shifted": {"use_flow_sigmas": True, "flow_shift": 3.0},
}


@over("discard", [False, True])
@over("variant", VARIANTS)
@over("name", sorted(GRIDS))
@over("counts", [(1, 2, 3, 5, 11, 38, 200)], full=[range(1, 201)])
def test_every_grid_places_distinct_falling_levels_on_every_schedule(counts, name, variant, discard):
    for n in counts:
        levels = place(name, n, VARIANTS[variant], discard_penultimate_sigma=discard)
        assert len(levels) == n + 1
        assert np.all(np.diff(levels.ratio) < 0), n
        assert levels.sigma[-1] == 0 and levels.t[0] <= 1000


STARTS_AT_ALPHA_ZERO = {"linspace", "trailing", "normal", "sgm_uniform", "simple", "beta", "beta_whole", "beta57"}


@over("name", sorted(GRIDS))
def test_zero_terminal_snr_starts_at_pure_noise_in_t_and_at_the_largest_finite_ratio_in_sigma(name):
    first = place(name, 10, VARIANTS["sd zero-snr"])[:1]
    assert (first.alpha[0] == 0) == (name in STARTS_AT_ALPHA_ZERO)
    assert np.isfinite(first.ratio[0]) == GRIDS[name].ratios or name in ("leading", "ddim_uniform")


@over("name", ["simple", "ddim_uniform"])
def test_whole_timesteps_last_to_the_thousandth(name):
    most = 1000 if name == "simple" else 999
    assert len(place(name, most)) == most + 1
    with pytest.raises(InputError, match=f"cannot place {most + 1} .* fewer steps"):
        place(name, most + 1)


def test_laplace_refuses_counts_at_which_its_ends_repeat():
    """Deviation from ComfyUI, whose list then repeats sigma_max and sigma_min."""
    with pytest.raises(InputError, match="cannot place 500"):
        place("laplace", 500)


@over("name", ["cosine", "linear_quadratic", "bong_tangent"])
def test_grids_spaced_by_the_size_of_sigma_are_about_the_flow_sigma_on_flow(name):
    expected = {
        "cosine": lambda n: [1e-3 + 0.999 * (1 - math.cos(math.pi * (1 - r**0.5))) / 2 for r in ramp(n)],
        "linear_quadratic": lambda n: [1 - s for s in mochi(n)],
        "bong_tangent": lambda n: bong(n, 1e-3, 1.0),
    }[name]
    for n in COUNTS:
        np.testing.assert_allclose(place(name, n, VARIANTS["flow"]).sigma[:-1], expected(n), rtol=1e-9)


def test_grids_in_t_on_flow_are_those_of_comfyui():
    """Whose table of sigmas is 1/1000 ... 1000/1000."""
    table = np.arange(1, 1001) / 1000
    for n in COUNTS:
        simple = [table[-(1 + int(i * (1000 / n)))] for i in range(n)]
        np.testing.assert_allclose(place("simple", n, VARIANTS["flow"]).sigma[:-1], simple, rtol=1e-9)
        normal = np.linspace(1, 0.001, n)
        np.testing.assert_allclose(place("normal", n, VARIANTS["flow"]).sigma[:-1], normal, rtol=1e-9)
        lowest = table[1 :: 1000 // n][:n][::-1]
        np.testing.assert_allclose(place("ddim_uniform", n, VARIANTS["flow"]).sigma[:-1], lowest, rtol=1e-9)


GITS_PUBLISHED = {
    2: (14.61464119, 0.803307),
    6: (14.61464119, 5.85520077, 2.05039096, 0.95350921, 0.45573691, 0.17026083),
    10: (
        *(14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338),
        *(0.74807048, 0.50118381, 0.32104823, 0.19894916, 0.09824532),
    ),
    20: (
        *(14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048),
        *(0.59516323, 0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385, 0.19894916, 0.17026083),
        *(0.13792117, 0.09824532),
    ),
}
"""sigmas as published, with nine digits, without the last."""


def test_gits_has_the_published_sigmas():
    for n, sigmas in GITS_PUBLISHED.items():
        np.testing.assert_allclose(place("gits", n).ratio[:-1], sigmas, rtol=4e-5)
    assert [len(row) for row in GITS] == list(range(2, 21))
    # twice the steps: every second is a published one, those between are geometric means
    forty, twenty = gits(40), np.array(GITS_PUBLISHED[20])
    np.testing.assert_allclose(forty[::2], twenty, rtol=4e-5)
    np.testing.assert_allclose(forty[1:-1:2], np.sqrt(twenty[1:] * twenty[:-1]), rtol=4e-5)


def test_automatic1111s_kl_optimal_is_ours_ended_at_sigma_min():
    ours = sd_ext.make_scheduler("euler", grid="kl_optimal", final_sigmas_type="sigma_min")
    ours.set_timesteps(12)
    theirs = [math.tan(i / 12 * math.atan(LOW) + (1 - i / 12) * math.atan(HIGH)) for i in range(13)]
    np.testing.assert_allclose(ours.sigmas.numpy(), theirs, rtol=1e-5)


ALIASES = {
    **dict.fromkeys(["uniform", "Uniform", "Normal", "normal"], "normal"),
    **dict.fromkeys(["sgm uniform", "SGM Uniform", "SGMUniform", "sgm-uniform"], "sgm_uniform"),
    **dict.fromkeys(["DDIM", "ddim uniform", "DDIM Uniform"], "ddim_uniform"),
    **dict.fromkeys(["KL Optimal", "kl-optimal"], "kl_optimal"),
    **dict.fromkeys(["AYS", "Align Your Steps", "align_your_steps"], "ays"),
    **dict.fromkeys(["AYS SDXL", "align your steps sdxl"], "ays_sdxl"),
    **dict.fromkeys(["lu", "use_lu_lambdas", "Exponential", "use_exponential_sigmas"], "exponential"),
    "use_beta_sigmas": "beta_sigmas",
    "use_karras_sigmas": "karras",
    "GITS": "gits",
    "Bong Tangent": "bong_tangent",
}


@over("alias", ALIASES)
def test_aliases(alias):
    assert get_grid(alias).name == ALIASES[alias]


def test_no_two_grids_share_a_spelling():
    assert len(spellings()) == sum(1 + len(grid.aliases) for grid in GRIDS.values())
    assert all(spelling == spelling.lower().replace(" ", "_").replace("-", "_") for spelling in spellings())
