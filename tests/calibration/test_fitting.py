"""The stages of a fit on problems whose answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sd_ext.calibration.fit import Fitting
from sd_ext.calibration.greedy import greedy, least_squares
from sd_ext.calibration.measure import rmse, spread
from sd_ext.calibration.problem import Sets
from sd_ext.calibration.refine import Effort, _Residual, allowed, derivative, first_calls, pack, refine, unpack
from sd_ext.calibration.starts import GRIDS
from sd_ext.calibration.student import Course, zero
from sd_ext.calibration.tables import best_known, end, known_table
from sd_ext.calibration.teacher import table_of, teach
from sd_ext.errors import InputError
from sd_ext.schedulers.calibrated import CalibratedScheduler, Calibration

from ..schedulers.mixture import Mixture
from .problems import SD, MixtureProblem
from .test_student import random_student

MIXTURE = Mixture.random(8, 6, seed=11)
OTHER = Mixture.random(8, 6, seed=12, spread=0.5)


@pytest.fixture(scope="module")
def taught():
    """A problem of 96 starts, its sets, and a teacher of 60 calls."""
    problem, sets = MixtureProblem(MIXTURE, 192), Sets(64, 32, 96)
    return problem, sets, teach(problem, sets, 1.0, table_of(SD, calls=60))


@pytest.fixture(scope="module")
def guided():
    problem, sets = MixtureProblem(MIXTURE, 96, free=OTHER), Sets(48, 16, 32)
    return problem, sets, teach(problem, sets, 3.0, table_of(SD, calls=60))


# ---- the teacher -----------------------------------------------------------------------------------------------------


def test_the_teacher_is_right(taught):
    problem, _sets, teacher = taught
    top = problem.schedule.at([999.0])
    exact = MIXTURE.solve(problem.starts.numpy()[:20], top.then(problem.schedule.at_lambda([12.0])))
    assert rmse(teacher.end[:20], torch.from_numpy(exact)) < 2e-3


def test_the_teachers_states_are_found_between_its_nodes(taught):
    teacher = taught[2]
    every_other = teacher.levels[np.array([*range(0, 60, 2), 60])]
    thinned = dataclasses.replace(teacher, levels=every_other, states=teacher.states[::2])
    left_out = range(5, 55, 2)
    found = torch.stack([thinned.target(range(96), float(teacher.levels.lam[i])) for i in left_out])
    straight = torch.stack([(teacher.states[i - 1] + teacher.states[i + 1]) / 2 for i in left_out])
    truth = teacher.states[5:55:2]
    assert (found - truth).pow(2).mean().sqrt() < 0.2 * (straight - truth).pow(2).mean().sqrt()
    node = float(teacher.levels.lam[17])
    torch.testing.assert_close(teacher.target(range(3), node), teacher.states[17, :3])
    assert teacher.target(range(2, 5), np.inf) is not None


def test_a_teacher_that_leaves_the_numbers_is_refused():
    problem = MixtureProblem(MIXTURE, 3)
    problem.starts[1] = torch.nan
    with pytest.raises(InputError, match="not numbers for 1 of 3 pairs"):
        teach(problem, Sets(2, 1, 0), 1.0, table_of(SD, calls=10))


def test_a_teacher_that_adds_noise_is_refused():
    with pytest.raises(InputError, match="adds noise"):
        table_of(SD, "euler a", 20)


# ---- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("calls", [2, 5, 10])
def test_grids_begin_at_full_noise_and_rise(taught, name, calls):
    teacher = taught[2]
    lam = GRIDS[name](teacher, calls)
    assert len(lam) == calls and lam[0] == teacher.levels.lam[0]
    assert np.all(np.diff(lam) > 0) and lam[-1] <= teacher.levels.lam[-2]


def test_dynamic_programming_finds_the_least_cost(taught):
    """Compared with all ways of three calls over some of the nodes."""
    teacher = taught[2]
    few = [0, 6, 15, 22, 31, 40, 52, 59]
    cost = np.full((len(few), len(few) + 1), np.inf)
    for i, a in enumerate(few):
        cost[i, len(few)] = teacher.cost[a, 60]
        for j in range(i + 1, len(few)):
            cost[i, j] = teacher.cost[a, few[j]]
    small = dataclasses.replace(teacher, cost=cost, levels=teacher.levels[np.array([*few, 60])])
    root = np.sqrt(cost)
    ways = {(i, j): root[0, i] + root[i, j] + root[j, -1] for i in range(1, 8) for j in range(i + 1, 8)}
    best = min(ways, key=lambda way: ways[way])
    np.testing.assert_allclose(GRIDS["by cost"](small, 3), small.levels.lam[[0, *best]])


# ---- the greedy stage ------------------------------------------------------------------------------------------------


def test_least_squares_finds_weights():
    rng = np.random.default_rng(0)
    columns = [torch.from_numpy(rng.standard_normal((5, 7))) for _ in range(3)]
    rest = 0.5 * columns[0] - 2 * columns[2]
    np.testing.assert_allclose(least_squares(columns, rest), [0.5, 0, -2], atol=1e-5)


@pytest.mark.parametrize("name", ["dpm++ 2m lambda_uniform", "dpm++ 2m karras", "deis trailing"])
def test_greedy_recovers_a_known_table_that_teaches_with_as_many_calls(name):
    problem, sets = MixtureProblem(MIXTURE, 24), Sets(24, 0, 0)
    table = known_table(name, 6, SD)
    teacher = teach(problem, sets, 1.0, table)
    student = greedy(Course(problem, range(24), 1.0), teacher, zero(problem.schedule, table.levels.lam[:-1], 1))
    torch.testing.assert_close(Course(problem, range(24), 1.0).run(student).end, teacher.end, rtol=0, atol=2e-5)
    if table.basis == "x0":
        history = table.history
        found = student.table().rows[:, 0, : 2 + history]
        np.testing.assert_allclose(found, table.rows[:, 0, : 2 + history], atol=2e-3)


def test_greedy_recovers_a_table_of_two_fields(guided):
    problem = guided[0]
    hidden = random_student(problem, 5, 2, seed=2, told=0.0)
    hidden = dataclasses.replace(hidden, weights=tuple(0.3 * w for w in hidden.weights))
    teacher = teach(problem, Sets(48, 0, 0), 3.0, hidden.table())
    found = greedy(Course(problem, range(48), 3.0), teacher, zero(problem.schedule, hidden.lam, 2))
    for one, other in zip(found.weights, hidden.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-2)


# ---- the refinement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [1, 2])
def test_the_derivative_is_that_of_central_differences(fields):
    problem = MixtureProblem(MIXTURE, 3, free=OTHER)
    course = Course(problem, range(3), 2.0)
    student = random_student(problem, 4, fields, told=0.05)
    student = dataclasses.replace(
        student, told=np.concatenate([[0.3], student.told[1:]])
    )  # off the end, where it stops
    ran = course.run(student)
    found = derivative(course, student, ran, _Residual(torch.zeros_like(ran.end)))
    numbers = pack(student)
    for place in range(len(numbers)):
        moved = np.zeros(len(numbers))
        moved[place] = 1e-5
        ends = [course.run(unpack(student, numbers + sign * moved)).end for sign in (1, -1)]
        torch.testing.assert_close(found[place], ((ends[0] - ends[1]) / 2e-5).flatten(), rtol=2e-2, atol=2e-2)


def test_what_lies_before_a_change_is_not_computed_again(taught):
    problem = MixtureProblem(MIXTURE, 1)
    student, course = random_student(problem, 5, 1), Course(problem, range(1), 1.0)
    ran, before = course.run(student), problem.made
    derivative(course, student, ran, _Residual(torch.zeros_like(ran.end)))
    assert problem.made - before == sum(5 - call - after for call, after in first_calls(student))


def test_levels_that_cross_are_not_allowed():
    student = zero(MixtureProblem(MIXTURE, 1).schedule, np.array([-2.6, -1.0, 1.0]), 1)
    assert allowed(student)
    assert not allowed(dataclasses.replace(student, lam=np.array([-2.6, 1.0, 1.0])))
    assert not allowed(dataclasses.replace(student, lam=np.array([-2.6, -1.0, 40.0])))
    assert not allowed(dataclasses.replace(student, told=np.array([0.0, 0.0, -2.1])))


def test_refinement_helps_on_pairs_it_has_not_seen(taught):
    problem, sets, teacher = taught
    fitted, checked, judged = (Course(problem, s, 1.0) for s in (sets.for_fit, sets.for_validation, sets.for_judgement))
    student = greedy(fitted, teacher, zero(problem.schedule, GRIDS["even to 1.5"](teacher, 5), 1))
    refined = refine(fitted, teacher, student, checked)
    goal = teacher.end[96:]
    assert rmse(judged.run(refined).end, goal) < 0.7 * rmse(judged.run(student).end, goal)
    kept = refine(fitted, teacher, student, checked, levels=False)
    np.testing.assert_array_equal(kept.lam, student.lam)
    np.testing.assert_array_equal(kept.told, student.told)


def test_refinement_never_ends_worse_than_it_began(guided):
    problem, sets, teacher = guided
    fitted, checked = Course(problem, range(2), 3.0), Course(problem, sets.for_validation, 3.0)  # too few to learn from
    student = greedy(
        Course(problem, sets.for_fit, 3.0), teacher, zero(problem.schedule, GRIDS["karras"](teacher, 5), 2)
    )
    refined = refine(fitted, teacher, student, checked, Effort(1, 3))
    goal = teacher.end[48:64]
    assert rmse(checked.run(refined).end, goal) <= rmse(checked.run(student).end, goal)


# ---- a whole fit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_a_fit_beats_every_known_sampler_on_starts_it_has_not_seen(taught, calls):
    problem, sets, teacher = taught
    fit, shape = Fitting(problem, sets, 1.0, 1, teacher, SD).fit(calls)
    assert fit.table is not None and fit.companion is None and fit.grid == shape.grid
    judged, goal = Course(problem, sets.for_judgement, 1.0), teacher.end[96:]
    name, error = best_known(judged, goal, calls, SD)  # the best of all on the judging set itself
    ours = end(judged, fit.table)
    assert rmse(ours, goal) < 0.6 * error, name
    assert fit.errors["fitted"] == pytest.approx(rmse(ours, goal), rel=1e-6)
    assert spread(ours, goal) == pytest.approx(1, abs=0.02)
    assert sorted(fit.starts) == list(range(1, calls))


def test_a_fit_of_two_fields_has_a_companion_on_its_levels(guided):
    problem, sets, teacher = guided
    fit, shape = Fitting(problem, sets, 3.0, 2, teacher, SD, Effort(1, 2)).fit(5)
    assert fit.table.fields == 2 and fit.companion.fields == 1
    np.testing.assert_array_equal(fit.table.levels.lam, fit.companion.levels.lam)
    assert fit.errors["fitted"] < fit.errors["known"]
    other, same = Fitting(problem, sets, 3.0, 2, teacher, SD, Effort(0)).fit(5, shape)
    assert same == shape and np.array_equal(other.table.levels.t, fit.table.levels.t)


def test_a_start_in_the_middle_is_made_by_what_is_better_there(taught):
    """From the teacher's states, by the scheduler's own step."""
    problem, sets, teacher = taught
    fitting = Fitting(problem, sets, 1.0, 1, teacher, SD, Effort(1, 1))
    fit, _ = fitting.fit(5)
    pairs = sets.for_validation
    for call, fitted in fit.starts.items():
        errors = []
        for wins in (True, False):
            calibration = Calibration((dataclasses.replace(fit, starts={call: wins}),))
            scheduler = CalibratedScheduler.from_calibration(calibration, SD, guidance_scale=1.0)
            scheduler.set_timesteps(5)
            scheduler.set_begin_index(call)
            x = teacher.target(pairs, float(fit.table.levels.lam[call]))
            levels = scheduler.table(call).levels
            for i, t in enumerate(scheduler.timesteps[call:]):
                alpha, sigma = float(levels.alpha[i]), float(levels.sigma[i])
                x0, _ = problem.predict(pairs, x, float(levels.t[i]), alpha, sigma, 1.0)
                x = scheduler.step((x - alpha * x0) / sigma, t, x, return_dict=False)[0]
            errors.append(rmse(x, teacher.end[64:96]))
        assert (errors[0] < errors[1]) == fitted or errors[0] == pytest.approx(errors[1], rel=1e-5)  # the last call


def test_a_known_sampler_that_is_better_is_kept(taught, monkeypatch):
    problem, sets, teacher = taught
    monkeypatch.setattr("sd_ext.calibration.fit.best_known", lambda *_: ("dpm++ 2m karras", 0.0))
    fit, _ = Fitting(problem, sets, 1.0, 1, teacher, SD, Effort(0)).fit(5)
    assert fit.table is None and fit.known == "dpm++ 2m karras" and fit.errors["fitted"] > 0
