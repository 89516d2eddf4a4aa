"""Churn: against algorithm 2 of EDM restated in float64; no churn is Euler and Heun to the bit."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.samplers.churn import churned
from sd_ext.schedulers.samplers.first_order import first_order

from ..conftest import SD
from ..mixture import run_table
from ..over import over
from ..test_stochastic import check_weak_order, table_of

GAMMA_MAX = np.sqrt(2) - 1


def edm(y, sigmas, hats, denoise, normal, *, heun, s_noise=1.0):
    """Algorithm 2, y = x / alpha: y is at hats[0] already, as a run starts there."""
    for i, sigma_next in enumerate(sigmas[1:]):
        hat = hats[i]
        if i and hat > sigmas[i]:
            y = y + np.sqrt(hat**2 - sigmas[i] ** 2) * s_noise * normal()
        slope = (y - denoise(y, hat)) / hat
        new = y + (sigma_next - hat) * slope
        if heun and sigma_next:
            new = y + (sigma_next - hat) / 2 * (slope + (new - denoise(new, sigma_next)) / sigma_next)
        y = new
    return y


@over("s_noise", [1.0, 1.007])
@over("s_churn, s_tmin, s_tmax", [(3.0, 0.0, np.inf), (100.0, 0.0, np.inf), (2.0, 0.3, 6.0)])
@over("name", ["euler", "heun"])
def test_is_algorithm_2(name, s_churn, s_tmin, s_tmax, s_noise, mixture):
    steps = 9
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise, "sigma_max": 9.0}
    scheduler = sd_ext.make_scheduler(name, SD, grid="karras", **options)
    plain = sd_ext.EulerDiscreteScheduler(**SD, grid="karras", sigma_max=9.0)
    calls = steps if name == "euler" else 2 * steps - 1
    scheduler.set_timesteps(calls)
    plain.set_timesteps(steps)
    sigmas = plain.levels.ratio
    gamma = min(s_churn / steps, GAMMA_MAX)
    hats = np.array([s * (1 + gamma) if s_tmin <= s <= s_tmax else s for s in sigmas[:-1]])
    table = scheduler.table()
    stage = scheduler.levels.stage
    np.testing.assert_allclose(table.levels.ratio[:-1][stage == 0], hats, rtol=1e-12)
    rng = np.random.default_rng(3)

    def denoise(y, sigma):
        alpha = 1 / np.sqrt(1 + sigma**2)
        return mixture.x0(alpha * y, alpha, alpha * sigma)

    x = mixture.sample(6, table.levels.alpha[0], table.levels.sigma[0], seed=1)
    expected = edm(
        x / table.levels.alpha[0], sigmas, hats, denoise, lambda: rng.standard_normal(x.shape),
        heun=name == "heun", s_noise=s_noise,
    )  # fmt: skip
    np.testing.assert_allclose(run_table(table, mixture, x, seed=3), expected, atol=1e-9)
    assert table.preserves == ("marginal" if s_noise == 1 else "mean")


@over("grid", [None, "karras", "lambda_uniform"])
@over("name", ["euler", "heun"])
def test_no_churn_is_the_plain_sampler_to_the_bit(name, grid):
    plain = sd_ext.make_scheduler(name, SD, grid=grid)
    for options in ({"s_churn": 0.0}, {"s_churn": 10.0, "s_tmin": 1e6}):
        other = sd_ext.make_scheduler(f"{name} churn", SD, grid=grid, **options)
        for scheduler in (plain, other):
            scheduler.set_timesteps(13)
        np.testing.assert_array_equal(other.table().rows, plain.table().rows)
        np.testing.assert_array_equal(other.table().levels.t, plain.table().levels.t)


def test_without_churn_euler_is_the_first_order_step(schedule):
    levels = schedule.at(np.linspace(999, 0, 12))
    np.testing.assert_array_equal(table_of("euler", levels).rows, first_order(levels).rows)


@over("s_churn", [1.0, 12.0])
@over("name", ["euler churn", "heun churn"])
def test_moments_at_weak_and_strong_churn(name, s_churn, schedule):
    order = 1 if name == "euler churn" else 2
    check_weak_order(lambda levels: table_of(name, levels, s_churn=s_churn), schedule, order)


@over("s_churn", [0.5, 20.0, 1e6])
@over("grid", ["linspace", "karras", "beta", "trailing", "ays"])
def test_levels_fall_and_stay_within_the_trained_range(grid, s_churn):
    scheduler = sd_ext.make_scheduler("euler churn", SD, grid=grid, s_churn=s_churn, s_tmin=0.1, s_tmax=5.0)
    for calls in (1, 2, 3, 20):
        scheduler.set_timesteps(calls)
        ratio = scheduler.levels.ratio
        assert np.all(np.diff(ratio) < 0)
        assert ratio[0] <= 14.6151  # the grid "ays" begins a little above the trained 14.6146


def test_steps_that_begin_in_range_do_not_climb_over_the_step_before(schedule):
    levels = schedule.at_lambda(-np.log([3.0, 2.5, 2.0, 1.0, 0.5]))
    ratio = churned(schedule, levels, 100.0, 0.0, 2.9).ratio
    first = np.sqrt(2.5 * 3.0)
    np.testing.assert_allclose(ratio, [3.0, first, np.sqrt(2.0 * first), np.sqrt(2), 0.5])


def test_the_network_is_told_the_raised_level():
    scheduler = sd_ext.make_scheduler("euler churn", SD, grid="karras", sigma_max=8.0)
    plain = sd_ext.make_scheduler("euler", SD, grid="karras", sigma_max=8.0)
    for s in (scheduler, plain):
        s.set_timesteps(10)
    gamma = min(5.0 / 10, GAMMA_MAX)
    np.testing.assert_allclose(scheduler.sigmas[:-1], (1 + gamma) * plain.sigmas[:-1], rtol=1e-5)
    told = scheduler.schedule.at(scheduler.timesteps[:-1].double().numpy()).ratio
    np.testing.assert_allclose(told, scheduler.sigmas[:-2], rtol=1e-4)


@over("name", ["euler churn", "heun churn"])
def test_a_start_at_every_call(name):
    scheduler = sd_ext.make_scheduler(name, SD, s_churn=8.0)
    scheduler.set_timesteps(9)
    for begin in range(9):
        assert scheduler.table(begin).calls == 9 - begin


def test_step_takes_diffusers_arguments_where_they_agree():
    scheduler = sd_ext.make_scheduler("euler churn", SD, s_churn=4.0)
    x = torch.zeros(1, 4, 2, 2)
    scheduler.set_timesteps(4)
    scheduler.step(x, scheduler.timesteps[0], x, 4.0, 0.0, float("inf"), 1.0, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"s_churn=3\.0"):
        scheduler.step(x, scheduler.timesteps[1], x, s_churn=3.0)
    assert scheduler.step_index == 1


@over("option", ["s_churn", "s_tmin", "s_tmax", "s_noise"])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=f"{option} must be"):
        sd_ext.make_scheduler("euler churn", SD, **{option: -1.0})


def test_deviation_churn_is_known_to_the_network():
    """Diffusers' Euler adds the churn after the network was evaluated, with the timestep of the level below: the noise
    is removed without having been seen. Ours puts it into the row before, so the network is told sigma-hat.
    """
    theirs = diffusers.EulerDiscreteScheduler(**SD)
    ours = sd_ext.make_scheduler("euler churn", SD, s_churn=10.0)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    # A network that knows the picture, 0, and so returns x's own noise: the truth at every level.
    results = []
    for scheduler in (theirs, ours):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 64, 64, generator=generator) * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps[:6]):
            seen = scheduler.scale_model_input(x, t)
            sigma = float(scheduler.sigmas[i])
            eps = seen * (1 + sigma**2) ** 0.5 / sigma
            x = scheduler.step(eps, t, x, s_churn=10.0, generator=generator).prev_sample
        sigma = float(scheduler.sigmas[6])
        level = sigma if scheduler is theirs else sigma / (1 + sigma**2) ** 0.5
        results.append(float(x.std()) / level)
    assert abs(results[1] - 1) < 0.02
    assert abs(results[0] - 1) > 0.1
