"""Stochastic samplers reproduce the data's moments: those of one Gaussian to rounding, with an error that falls as it
must, those of a mixture within sampling error. Their limits are their twins.
"""

from __future__ import annotations

import numpy as np
import pytest

import sd_ext
from sd_ext.schedulers.samplers.ddpm import ddpm
from sd_ext.schedulers.samplers.dpm_solver import multistep
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.table import Table

from .conftest import SD
from .gaussian import error
from .mixture import run_table
from .over import over


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


def in_lambda(schedule, steps):
    """Even steps in lambda from the most noise of Stable Diffusion to little."""
    return schedule.at_lambda(np.linspace(schedule.lam[999], 2.5, steps + 1))


def check_weak_order(make, schedule, order, *, steps=96):
    """The moments' error on a Gaussian is small and falls with the steps, as their number to the power `order`.

    Args:
        make: levels -> table.
        order: 1, or 2 for two and above: to what power tables of higher orders still have it.
    """
    coarse, fine = (error(make(in_lambda(schedule, n))) for n in (steps, 2 * steps))
    assert coarse < {1: 6.0, 2: 1.2}[order] / steps
    assert fine < 1e-5 or np.log2(coarse / fine) > {1: 0.85, 2: 1.55}[order]


def has_moments(info) -> bool:
    """Stochastic, and solving the SDE: consistency models do not."""
    return info.stochastic and info.order is not None


STOCHASTIC = {info.name: info for info in sd_ext.list_samplers() if has_moments(info)}
STRENGTHS = [
    (name, eta) for name, info in STOCHASTIC.items() for eta in ((1.0, 0.3) if "eta" in info.cls._options else (None,))
]


def with_strength(name, eta, levels):
    made = table_of(name, levels, **({} if eta is None else {"eta": eta}))
    assert made.stochastic
    return made


@over("name, eta", STRENGTHS)
def test_moments_of_every_stochastic_sampler(name, eta, schedule):
    """At full strength and, where it has one, at a weak one."""
    steps = 96 // int(STOCHASTIC[name].calls)
    order = min(STOCHASTIC[name].order, 2)
    check_weak_order(lambda levels: with_strength(name, eta, levels), schedule, order, steps=steps)


@over("name, eta", [("euler a", 1.0), ("dpm++ 2m sde", 1.0), ("dpm++ sde", 0.3)], full=STRENGTHS)
def test_moments_of_a_mixture(name, eta, schedule, mixture):
    """Where predictions are not linear, by sampling."""
    steps = 96 // int(STOCHASTIC[name].calls)
    levels = in_lambda(schedule, steps)
    x = mixture.sample(5_000, levels.alpha[0], levels.sigma[0], seed=11)
    end = run_table(with_strength(name, eta, levels), mixture, x, seed=12)
    check_moments(end, mixture, levels, bias=2.0 / steps)


CASES = {
    "ddim eta 0.3": (lambda levels: first_order(levels, eta=0.3), 1),
    "dpm++ 2m sde heun": (lambda levels: multistep(levels, 2, "sde-dpmsolver++", "heun"), 2),
    "sde-dpm-solver 1": (lambda levels: multistep(levels, 1, "sde-dpmsolver"), 1),
}


@over("name", CASES)
def test_moments(name, schedule):
    make, order = CASES[name]
    assert make(in_lambda(schedule, 8)).stochastic
    check_weak_order(make, schedule, order)


def test_moments_would_notice_missing_noise(schedule, mixture):
    """The checks have teeth: an ancestral table without its noise, or with a tenth less, fails them."""

    def quiet(levels, kept=0.0):
        rows = first_order(levels, eta=1.0).rows.copy()
        rows[:, :, -1] *= kept
        return Table(levels, rows, "x0", "mean")

    for kept in (0.0, 0.9):
        with pytest.raises(AssertionError):
            check_weak_order(lambda levels, kept=kept: quiet(levels, kept), schedule, 1)
    levels = in_lambda(schedule, 100)
    x = mixture.sample(5_000, levels.alpha[0], levels.sigma[0], seed=11)
    with pytest.raises(AssertionError):
        check_moments(run_table(quiet(levels), mixture, x), mixture, levels, bias=0.02)


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
