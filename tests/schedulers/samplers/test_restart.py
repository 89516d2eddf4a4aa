"""Restart: the algorithm restated in float64, honest counts, and Heun where there is no restart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError

from ..conftest import SD
from ..mixture import run_table
from ..over import over
from ..test_stochastic import check_weak_order, in_lambda, table_of


def jumps(table) -> list[int]:
    return [i for i, row in enumerate(table.rows) if row[0, -1]]


def heun_down(y, sigmas, denoise):
    for sigma, below in itertools.pairwise(sigmas):
        slope = (y - denoise(y, sigma)) / sigma
        new = y + (below - sigma) * slope
        if below:
            new = y + (below - sigma) / 2 * (slope + (new - denoise(new, below)) / below)
        y = new
    return y


@over("restarts, steps", [(1, 3), (3, 2)])
def test_is_restart_sampling(restarts, steps, mixture):
    main = 8
    calls = 2 * main - 1 + 2 * restarts * steps
    scheduler = sd_ext.RestartScheduler(**SD, grid="karras", restarts=restarts, restart_steps=steps)
    plain = sd_ext.EulerDiscreteScheduler(**SD, grid="karras")
    scheduler.set_timesteps(calls)
    plain.set_timesteps(main)
    sigmas = plain.levels.ratio
    at = int(np.argmin(np.abs(np.log(sigmas[1:-1] / 0.1)))) + 1
    again = np.linspace(2.0 ** (1 / 7), sigmas[at] ** (1 / 7), steps + 1) ** 7
    rng = np.random.default_rng(5)

    def denoise(y, sigma):
        alpha = 1 / np.sqrt(1 + sigma**2)
        return mixture.x0(alpha * y, alpha, alpha * sigma)

    table = scheduler.table()
    x = mixture.sample(6, table.levels.alpha[0], table.levels.sigma[0], seed=1)
    y = heun_down(x / table.levels.alpha[0], sigmas[: at + 1], denoise)
    for _ in range(restarts):
        y = y + np.sqrt(2.0**2 - sigmas[at] ** 2) * rng.standard_normal(x.shape)
        y = heun_down(y, again, denoise)
    y = heun_down(y, sigmas[at:], denoise)
    np.testing.assert_allclose(run_table(table, mixture, x, seed=5), y, atol=1e-8)
    assert len(jumps(table)) == restarts


@over("end, most", [("zero", 19)], full=[("zero", 63), ("sigma_min", 63)])
@over("restarts", [1, 3], full=[1, 2, 3, 4])
def test_every_count_is_the_count_and_starts_everywhere(restarts, end, most):
    scheduler = sd_ext.RestartScheduler(**SD, restarts=restarts, final_sigmas_type=end)
    for calls in range(1, most + 1):
        scheduler.set_timesteps(calls)
        table = scheduler.table()
        assert table.calls == calls
        assert len(jumps(table)) == min(restarts, calls // 6)
        assert [scheduler.table(begin).calls for begin in range(calls)] == [*range(calls, 0, -1)]


@over("grid", [None, "karras", "beta", "ays"])
def test_without_restarts_it_is_heun(grid):
    heun = sd_ext.make_scheduler("heun", SD, grid=grid)
    for calls, options in ((11, {"restarts": 0}), (5, {}), (4, {}), (1, {}), (14, {"restart_steps": 7})):
        restart = sd_ext.make_scheduler("restart", SD, grid=grid, **options)
        for scheduler in (heun, restart):
            scheduler.set_timesteps(calls)
        np.testing.assert_array_equal(restart.table().rows, heun.table().rows)
        np.testing.assert_array_equal(restart.timesteps, heun.timesteps)


@over("restarts, high", [(1, 0.5), (1, 2.0), (4, 2.0), (2, 10.0)])
def test_moments(restarts, high, schedule):
    def make(levels):
        options = {"restarts": restarts, "restart_max": high, "restart_steps": (len(levels) - 1) // 2}
        return table_of("restart", levels, **options)

    assert len(jumps(make(in_lambda(schedule, 12)))) == restarts
    check_weak_order(make, schedule, 2, steps=32)


def test_restarts_contract_errors(schedule, mixture):
    """What Restart is for: with a coarse main grid, restarting brings samples nearer to the data."""
    from ..mixture import Mixture

    narrow = Mixture(mixture.weights, mixture.means, 0.05 * np.ones(5))
    levels = schedule.at_lambda(np.linspace(schedule.lam[999], 3.0, 5))
    x = narrow.sample(4_000, levels.alpha[0], levels.sigma[0], seed=1)
    errors = []
    for restarts in (0, 1, 3):
        table = table_of("restart", levels, restarts=restarts, restart_steps=8, restart_min=0.3, restart_max=3.0)
        ends = run_table(table, narrow, x, seed=2)
        mean, cov = narrow.moments(levels.alpha[-1], levels.sigma[-1])
        errors.append(np.abs(np.cov(ends.T) - cov).max() + np.abs(ends.mean(0) - mean).max())
    assert errors[2] < errors[1] < errors[0]


def test_the_interval_is_kept_within_the_grid():
    """Few calls and odd intervals: the jump always goes up, never above where the run begins."""
    for low, high in ((1e-4, 1e-3), (0.1, 2.0), (50.0, 100.0)):
        scheduler = sd_ext.RestartScheduler(**SD, restart_min=low, restart_max=high)
        for calls in (6, 7, 13, 30):
            scheduler.set_timesteps(calls)
            levels, (at,) = scheduler.levels, jumps(scheduler.table())
            assert levels.landing[at + 1] < levels.ratio[at + 1] < levels.ratio[0] * (1 + 1e-9)


def test_repeated_levels_are_told_apart_by_position():
    scheduler = sd_ext.RestartScheduler(**SD, restarts=3)
    scheduler.set_timesteps(30)
    tops = [i + 1 for i in jumps(scheduler.table())]
    assert len({float(scheduler.timesteps[i]) for i in tops}) == 1
    x = torch.zeros(1, 4, 2, 2)
    for top in tops:
        scheduler.set_timesteps(30)
        scheduler.step(x, scheduler.timesteps[top], x)
        assert scheduler.step_index == top + 1


@over(
    "options, says",
    [
        ({"restarts": -1}, "restarts must be"),
        ({"restarts": 1.5}, "restarts must be"),
        ({"restart_steps": 0}, "restart_steps must be"),
        ({"restart_min": 0.0}, "restart_min must be"),
        ({"restart_min": 3.0}, "restart_min must be"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        sd_ext.make_scheduler("restart", SD, **options)
