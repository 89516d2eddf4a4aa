"""The recommended sampler is the one that the guidance and the number of calls ask for."""

from __future__ import annotations

from math import inf

import numpy as np
import torch

import sd_ext
from sd_ext.calibration.measure import rmse
from sd_ext.calibration.problem import Sets
from sd_ext.calibration.student import Course
from sd_ext.calibration.tables import end, known_table
from sd_ext.calibration.teacher import table_of, teach
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.samplers import fitted
from sd_ext.schedulers.samplers.auto import CHOICES, choose

from ...calibration.problems import MixtureProblem
from ..conftest import SD
from ..mixture import Mixture
from ..over import over

OTHER = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""Nothing was fitted to it."""
TWINS = [
    (min(strength, 9.0), int(min(choice.calls, 60)), f"{choice.solver} {choice.grid}")
    for strength, choices in CHOICES.items()
    for choice in choices
]
FITS = [(each.guidance, each.calls) for each in fitted.every().values()]


def made(guidance: float, calls: int, config=SD, **options):
    scheduler = sd_ext.make_scheduler("auto", config, guidance_scale=guidance, **options)
    scheduler.set_timesteps(calls)
    return scheduler


@over("guidance, calls, twin", TWINS)
def test_auto_is_the_sampler_of_that_name_on_the_grid_of_that_name(guidance, calls, twin):
    ours, other = made(guidance, calls, OTHER), sd_ext.make_scheduler(twin, OTHER)
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
    ours, other = made(7.5, 8, {**SD, **config}), sd_ext.make_scheduler(choose(7.5, 8).solver, SD, grid=grid)
    other.set_timesteps(8)
    np.testing.assert_array_equal(ours.timesteps, other.timesteps)
    np.testing.assert_array_equal(ours.table().rows, other.table().rows)


# ---- with few calls on Stable Diffusion's schedule: fitted tables ----------------------------------------------------


@over("guidance, calls", FITS)
def test_a_fitted_table_goes_from_full_noise_to_the_clean_end_and_tells_falling_timesteps(guidance, calls):
    """That it is exact on one-point data is checked by every table at birth."""
    scheduler = made(guidance, calls)
    table, t = scheduler.table(), scheduler.timesteps.numpy()
    known = fitted.every()[guidance, calls]
    np.testing.assert_array_equal(table.rows, known.table(known.levels(scheduler.schedule)).rows)
    assert table.calls == len(t) == calls and table.fields == 1 and not table.stochastic
    assert (table.levels.alpha[0], table.levels.sigma[-1]) == (NoiseSchedule.from_config(SD).at([999.0]).alpha[0], 0)
    assert (np.diff(t) < 0).all() and t[-1] >= 0 and t[0] <= 999


def test_the_nearest_strength_of_guidance_is_taken_within_reach_and_on_schedules_alike():
    schedule = NoiseSchedule.from_config(SD)
    guidance, calls = next((g, n) for g, n in FITS if g == 5)
    for told in (5.0, 5.2, 4.8):
        assert fitted.find(schedule, told, calls) is fitted.every()[guidance, calls]
    strengths = [g for g, n in FITS if n == calls]
    assert fitted.find(schedule, 0.0, calls) is fitted.find(schedule, 1.0, calls)
    assert fitted.find(schedule, 2 * max(strengths), calls) is None
    assert fitted.find(schedule, 5.0, 40) is None
    flow = {"prediction_type": "flow_prediction"}
    for config in (OTHER, {**SD, "rescale_betas_zero_snr": True}, flow, {"beta_schedule": "squaredcos_cap_v2"}):
        assert fitted.find(NoiseSchedule.from_config(config), 5.0, calls) is None
    assert made(5.0, calls, final_sigmas_type="sigma_min").table().levels.sigma[-1] > 0


@over("calls", [5, 6, 8, 9])
def test_a_run_that_begins_in_the_middle_goes_the_rest_of_the_way_by_the_same_table_and_better_than_a_solver(calls):
    """From the states of many calls."""
    scheduler, choice = made(1.0, calls), choose(1.0, calls)
    solver = sd_ext.make_scheduler(choice.solver, SD, grid=choice.grid)
    solver.set_timesteps(calls)
    problem = MixtureProblem(Mixture.random(12, 5, 31), 64, 3)
    course = Course(problem, range(64), 1.0)
    teacher = teach(problem, Sets(64, 0, 0), 1.0, table_of(SD, calls=150))
    for begin in (1, calls // 2):
        tables = scheduler.table(begin), solver.table(begin)
        np.testing.assert_array_equal(tables[0].levels.alpha, scheduler.levels.alpha[begin:])
        starts = [teacher.target(range(64), float(table.levels.lam[0])) for table in tables]
        errors = [rmse(end(course, table, x), teacher.end) for table, x in zip(tables, starts, strict=True)]
        assert errors[0] < errors[1], (calls, begin, errors)


def test_noise_is_added_as_the_latents_have_it_and_not_as_the_network_is_told():
    scheduler = made(5.0, 6)
    x, noise = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    told = scheduler.schedule.at(scheduler.timesteps.numpy())
    assert not np.allclose(told.alpha, scheduler.levels.alpha[:-1], atol=1e-3)
    for i, t in enumerate(scheduler.timesteps):
        expected = scheduler.levels.alpha[i] + 2 * scheduler.levels.sigma[i]
        np.testing.assert_allclose(scheduler.add_noise(x, noise, t[None]).numpy(), expected, rtol=1e-5)


def test_where_nothing_is_fitted_a_start_in_the_middle_is_a_run_of_its_own():
    scheduler, fresh = made(5.0, 12, OTHER), sd_ext.make_scheduler("auto", OTHER, guidance_scale=5.0)
    fresh.set_timesteps(timesteps=scheduler.levels.t[5:-1])
    np.testing.assert_allclose(scheduler.table(5).rows, fresh.table().rows, atol=1e-9)


@over("guidance, calls", [(1.0, 5), (1.0, 8)], full=[(g, n) for g, n in FITS if g == 1])
def test_on_data_that_nothing_was_fitted_to_a_fitted_table_beats_the_known_samplers(guidance, calls):
    """In the geometric mean of eight mixtures, beside what `auto` was and DPM++ 2M on Karras's grid."""
    choice, ratios = choose(guidance, calls), {}
    for seed in range(900, 908):
        problem = MixtureProblem(Mixture.random(6 + seed % 5, 2 + seed % 7, seed), 32, seed)
        course, schedule = Course(problem, range(32), guidance), problem.schedule
        ends = schedule.at([999.0]).then(schedule.at_lambda([12.0]))
        exact = torch.from_numpy(problem.data.solve(problem.starts.numpy(), ends))
        ours = rmse(end(course, made(guidance, calls).table()), exact)
        for name in (f"{choice.solver} {choice.grid}", "dpm++ 2m karras"):
            ratios.setdefault(name, []).append(ours / rmse(end(course, known_table(name, calls, SD)), exact))
    for name, each in ratios.items():
        assert np.exp(np.log(each).mean()) < (0.75 if calls < 20 else 0.9), (name, each)
