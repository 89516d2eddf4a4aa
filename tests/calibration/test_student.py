"""A student's numbers, the table they make, and how it is run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sd_ext.calibration.student import Course, from_table, unknowns, zero
from sd_ext.calibration.tables import end, known_table
from sd_ext.errors import InputError

from ..schedulers.mixture import Mixture, run_table
from .problems import SD, MixtureProblem, PointProblem

MIXTURE = Mixture.random(6, 4, seed=3)
OTHER = Mixture.random(6, 4, seed=4)


def random_student(problem, calls, fields, seed=0, told=0.1):
    rng = np.random.default_rng(seed)
    lam = np.concatenate([problem.schedule.lam[-1:], np.sort(rng.uniform(-2, 2.5, calls - 1))])
    student = zero(problem.schedule, lam, fields, told * rng.standard_normal(calls))
    for i, weights in enumerate(student.weights):
        student = student.with_weights(i, 0.3 * rng.standard_normal(len(weights)))
    return student


@pytest.mark.parametrize("fields", [1, 2])
@pytest.mark.parametrize("calls", [2, 5, 9])
def test_it_runs_as_its_table_is_defined(fields, calls):
    """Compared with rows applied to slots as the definition reads, by another program."""
    problem = MixtureProblem(MIXTURE, 3, free=OTHER)
    student = random_student(problem, calls, fields, told=0.0)
    ours = Course(problem, range(3), 1.0).run(student).end  # at guidance 1 the guided prediction is the prompt's own
    theirs = run_table(student.table(), MIXTURE, problem.starts.numpy(), free=OTHER)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fields", [1, 2])
def test_its_table_runs_alike_in_the_packages_executor(fields):
    problem = MixtureProblem(MIXTURE, 5, free=OTHER, batch=2)
    student, course = random_student(problem, 6, fields), Course(problem, range(1, 5), 3.0)
    torch.testing.assert_close(course.run(student).end, end(course, student.table()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fields", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_on_one_point_it_is_exact_whatever_its_numbers(fields, seed):
    problem = PointProblem()
    student = random_student(problem, 5, fields, seed)
    ran = Course(problem, range(3), 7.5).run(student)
    torch.testing.assert_close(ran.end, problem.point.expand_as(ran.end))
    noise = (problem.starts - student.levels.alpha[0] * problem.point) / student.levels.sigma[0]
    for i, state in enumerate(ran.states):  # at every level it is the point, with the first noise at that level
        alpha, sigma = student.levels.alpha[i], student.levels.sigma[i]
        torch.testing.assert_close(state.x, alpha * problem.point + sigma * noise)


@pytest.mark.parametrize("fields", [1, 2])
def test_a_table_leads_back_to_the_student(fields):
    problem = MixtureProblem(MIXTURE, 1)
    student = random_student(problem, 5, fields)
    again = from_table(problem.schedule, student.table())
    np.testing.assert_allclose(again.lam, student.lam, atol=1e-9)
    np.testing.assert_allclose(again.table().rows, student.table().rows, atol=1e-9)
    np.testing.assert_allclose(again.levels.t, student.levels.t, atol=1e-6)


def test_euler_is_the_student_without_weights():
    problem = MixtureProblem(MIXTURE, 1)
    euler = known_table("ddim trailing", 6, SD)
    student = zero(problem.schedule, euler.levels.lam[:-1], 1)
    np.testing.assert_allclose(student.table().rows[:, 0, [0, 2]], euler.rows[:, 0, [0, 2]], atol=1e-9)


@pytest.mark.parametrize("fields", [1, 2])
def test_a_run_goes_on_from_any_call(fields):
    problem = MixtureProblem(MIXTURE, 4, free=OTHER)
    student, course = random_student(problem, 5, fields), Course(problem, range(4), 2.0)
    whole = course.run(student)
    for i in range(5):
        before = problem.made
        torch.testing.assert_close(course.run(student, i, whole.states[i]).end, whole.end)
        assert problem.made - before == 4 * (5 - i)


def test_batches_change_nothing():
    student = random_student(MixtureProblem(MIXTURE, 1), 4, 1)
    ends = [Course(MixtureProblem(MIXTURE, 7, batch=b), range(7), 1.0).run(student).end for b in (7, 3, 1)]
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])


def test_a_network_that_keeps_something_is_run_from_the_beginning():
    """`MixtureProblem` refuses to be entered in the middle, or to be called for two runs in turn."""
    problem = MixtureProblem(MIXTURE, 5, batch=2, stateful=True)
    student, course = random_student(problem, 4, 1, told=0.0), Course(problem, range(5), 1.0)
    whole = course.run(student)
    torch.testing.assert_close(course.run(student, 2, whole.states[2]).end, whole.end)


def test_full_noise_without_any_signal():
    """Zero terminal SNR: lambda of the first level is minus infinity."""
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    schedule = MixtureProblem(MIXTURE, 1, config=config).schedule
    table = zero(schedule, np.array([-np.inf, -1.0, 1.0]), 1).table()
    assert table.levels.alpha[0] == 0 and table.levels.t[0] == 999


@pytest.mark.parametrize(("fields", "calls", "expected"), [(1, 5, 10 + 9), (2, 5, 21 + 9), (2, 2, 4 + 3)])
def test_how_many_numbers_are_fitted(fields, calls, expected):
    assert unknowns(fields, calls) == expected


def test_levels_that_do_not_rise_make_no_table():
    problem = MixtureProblem(MIXTURE, 1)
    with pytest.raises(InputError):
        zero(problem.schedule, np.array([np.nan, 0.0]), 1).table()
