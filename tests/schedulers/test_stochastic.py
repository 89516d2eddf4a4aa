"""Stochastic samplers reproduce the mixture's moments within sampling error; their limits are their twins."""

from __future__ import annotations

import numpy as np
import pytest

import sd_ext
from sd_ext.schedulers.samplers.ddpm import ddpm
from sd_ext.schedulers.samplers.dpm_solver import multistep
from sd_ext.schedulers.samplers.first_order import first_order

from .conftest import SD
from .mixture import run_table

SAMPLES = 12_000


def check_moments(samples, mixture, levels, bias=0.0):
    """Within 4.5 standard errors of the exact moments, plus a relative `bias` for the step size."""
    mean, cov = mixture.moments(levels.alpha[-1], levels.sigma[-1])
    std = np.sqrt(np.diag(cov))
    standard_error = 4.5 / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(0) - mean) < std * (standard_error + bias))
    # Var of a sample covariance entry is at most E[x_i^2 x_j^2]; bounded here by 3 std_i^2 std_j^2 for light tails.
    limit = np.outer(std, std) * (np.sqrt(3) * standard_error + bias)
    assert np.all(np.abs(np.cov(samples.T) - cov) < limit)


def table_of(name, levels, **options):
    scheduler = sd_ext.make_scheduler(name, SD, **options)
    return scheduler._table(scheduler._explicit_stages(levels), 0.0)


def has_moments(info) -> bool:
    """Stochastic, and solving the SDE: consistency models do not."""
    return info.stochastic and info.order is not None


STOCHASTIC = {info.name: info for info in sd_ext.list_samplers() if has_moments(info)}
STRENGTHS = [
    (name, eta) for name, info in STOCHASTIC.items() for eta in ((1.0, 0.3) if "eta" in info.cls._options else (None,))
]


@pytest.mark.parametrize("name, eta", STRENGTHS)
def test_moments_of_every_stochastic_sampler(name, eta, schedule, mixture):
    """At full strength and, where it has one, at a weak one."""
    steps = 96 // int(STOCHASTIC[name].calls)
    levels = schedule.at_lambda(np.linspace(schedule.lam[999], 2.5, steps + 1))
    made = table_of(name, levels, **({} if eta is None else {"eta": eta}))
    assert made.stochastic
    x = mixture.sample(8_000, levels.alpha[0], levels.sigma[0], seed=11)
    check_moments(run_table(made, mixture, x, seed=12), mixture, levels, bias=2.0 / steps)


CASES = {
    "ddim eta 0.3": (lambda levels: first_order(levels, eta=0.3), 100),
    "dpm++ 2m sde heun, few steps": (lambda levels: multistep(levels, 2, "sde-dpmsolver++", "heun"), 30),
    "sde-dpm-solver 1": (lambda levels: multistep(levels, 1, "sde-dpmsolver"), 200),
}


@pytest.mark.parametrize("name", CASES)
def test_moments(name, schedule, mixture):
    table, steps = CASES[name]
    levels = schedule.at_lambda(np.linspace(schedule.lam[999], 2.5, steps + 1))
    x = mixture.sample(SAMPLES, levels.alpha[0], levels.sigma[0], seed=11)
    made = table(levels)
    assert made.stochastic
    check_moments(run_table(made, mixture, x, seed=12), mixture, levels, bias=2.0 / steps)


def test_moments_would_notice_missing_noise(schedule, mixture):
    """The check has teeth: an ancestral table without its noise fails it."""
    levels = schedule.at_lambda(np.linspace(schedule.lam[999], 2.5, 201))
    x = mixture.sample(SAMPLES, levels.alpha[0], levels.sigma[0], seed=11)
    from sd_ext.schedulers.table import Table

    table = first_order(levels, eta=1.0)
    rows = table.rows.copy()
    rows[:, :, -1] = 0
    with pytest.raises(AssertionError):
        check_moments(run_table(Table(levels, rows, "x0", "mean"), mixture, x), mixture, levels, bias=0.01)


def test_zero_eta_is_the_deterministic_twin(schedule):
    levels = schedule.at(np.linspace(999, 0, 21))
    np.testing.assert_array_equal(first_order(levels, eta=0.0).rows, first_order(levels).rows)
    assert not first_order(levels).stochastic


def test_ddpm_with_all_steps_is_the_ancestral_posterior(schedule):
    """Against Ho et al. 2020, eq. 6-7, from betas alone, with the root in beta_t / sqrt(1 - alphabar_t) on epsilon."""
    from sd_ext.schedulers.run import AT_M, AT_NOISE, AT_X, compile_calls
    from sd_ext.schedulers.schedule import ZERO

    table = ddpm(schedule.at(np.arange(999, -1, -1)).then(ZERO))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    calls = compile_calls(table, "epsilon", hooked=False)
    for t in (999, 998, 500, 2, 1, 0):
        bar, bar_prev = alphas_cumprod[t], alphas_cumprod[t - 1] if t else 1.0
        of_x, of_eps, of_noise = (dict(calls[999 - t].x).get(place, 0.0) for place in (AT_X, AT_M, AT_NOISE))
        assert of_x == pytest.approx(1 / np.sqrt(1 - betas[t]), rel=1e-9)
        assert of_eps == pytest.approx(-betas[t] / np.sqrt(1 - bar) / np.sqrt(1 - betas[t]), rel=1e-7)
        assert of_noise == pytest.approx(np.sqrt((1 - bar_prev) / (1 - bar) * betas[t]), abs=1e-9)


def test_ancestral_names_are_one_sampler(schedule):
    """DDPM (fixed_small), DDIM with eta = 1 and Euler a write the same table."""
    levels = schedule.at([999.0, 700.0, 300.0, 20.0])
    np.testing.assert_allclose(ddpm(levels).rows, first_order(levels, eta=1.0).rows, atol=1e-14)
