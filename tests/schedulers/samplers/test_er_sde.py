"""ER-SDE: its integrals against SciPy, its limits, and the published formulas restated in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.samplers.dpm_solver import multistep
from sd_ext.schedulers.samplers.er_sde import NOISE_SCALES, er_sde, moments
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.schedule import ZERO

from ..conftest import SD
from ..mixture import run_table
from ..over import over
from ..test_stochastic import check_weak_order

PHI = {
    "ode": lambda x: x,
    "sde": lambda x: x**2,
    "sde_1": lambda x: x * (np.exp(-1 / x) + 10),
    "sde_2": lambda x: x**1.5,
    "sde_3": lambda x: x**2.5,
    "sde_4": lambda x: x**0.9 * np.log10(1 + 100 * x**1.5),
    "sde_5": lambda x: x * (np.exp(x**0.3) + 10),
}
"""As printed in the paper's appendix A.8 and the authors' code."""


@over("name", NOISE_SCALES)
@over("start, end", [(14.6, 13.0), (14.6, 0.03), (1.0, 0.999), (0.05, 0.03)])
def test_integrals(name, start, end):
    phi, h = PHI[name], end - start
    r = phi(end) / phi(start)
    first = h + phi(end) * quad(lambda x: 1 / phi(x), end, start, epsabs=0, epsrel=1e-12)[0]
    second = h**2 / 2 + phi(end) * quad(lambda x: (x - start) / phi(x), end, start, epsabs=0, epsrel=1e-12)[0]
    got = moments(name, 1.0, start, end, 3)
    np.testing.assert_allclose(got, [1 - r, first / h, 2 * second / h**2], rtol=1e-10, atol=1e-12)


def published(x, levels, order, phi, denoise, noise):
    """The solvers as published in the variance-preserving form, sums over rectangles replaced by quad."""
    lam, x0s, ds = levels.ratio, [], []
    for i in range(len(levels) - 1):
        alpha, sigma, here, there = levels.alpha[i], levels.sigma[i], lam[i], lam[i + 1]
        x0s.append(denoise(x, alpha, sigma))
        r = phi(there) / phi(here)
        out = levels.alpha[i + 1] * (r * x / alpha + (1 - r) * x0s[i])
        if i and order > 1:
            ds.append((x0s[i] - x0s[i - 1]) / (here - lam[i - 1]))
            integral = quad(lambda v: 1 / phi(v), there, here, epsabs=0, epsrel=1e-12)[0]
            out = out + levels.alpha[i + 1] * (there - here + phi(there) * integral) * ds[-1]
        if i > 1 and order > 2:
            dd = 2 * (ds[-1] - ds[-2]) / (here - lam[i - 2])
            integral = quad(lambda v, here=here: (v - here) / phi(v), there, here, epsabs=0, epsrel=1e-12)[0]
            out = out + levels.alpha[i + 1] * ((there - here) ** 2 / 2 + phi(there) * integral) * dd
        x = out + levels.alpha[i + 1] * np.sqrt(max(0.0, there**2 - here**2 * r**2)) * noise()
    return x


@over("order", [1, 2, 3])
@over("name", NOISE_SCALES)
def test_the_published_formulas(name, order, schedule, mixture):
    levels = schedule.at(np.linspace(999, 5, 9))
    x = mixture.sample(6, levels.alpha[0], levels.sigma[0], seed=3)
    rng = np.random.default_rng(4)
    table = er_sde(levels, order, name)
    quiet = not table.stochastic
    expected = published(x, levels, order, PHI[name], mixture.x0, lambda: 0 if quiet else rng.standard_normal(x.shape))
    np.testing.assert_allclose(run_table(table, mixture, x, seed=4), expected, atol=1e-9)


def test_first_order_limits(schedule):
    """phi = x is DDIM, phi = x^2 the first-order SDE of DPM-Solver++; eta scales between them."""
    levels = schedule.at(np.linspace(999, 0, 12)).then(ZERO)
    for eta in (0.0, 0.3, 1.0):
        rows = multistep(levels, 1, "sde-dpmsolver++", eta=eta).rows
        np.testing.assert_allclose(er_sde(levels, 1, "sde", eta).rows, rows, atol=1e-14)
    for name in NOISE_SCALES:
        np.testing.assert_allclose(er_sde(levels, 1, name, 0.0).rows, first_order(levels).rows, atol=1e-14)


@over("order", [2, 3])
def test_no_strength_is_the_ode(order, schedule):
    levels = schedule.at(np.linspace(999, 0, 12)).then(ZERO)
    ode = er_sde(levels, order, "ode")
    assert not ode.stochastic
    for name in NOISE_SCALES:
        np.testing.assert_array_equal(er_sde(levels, order, name, eta=0.0).rows, ode.rows)
        assert name == "ode" or er_sde(levels, order, name).stochastic


@over("eta", [0.3, 1.0, 2.0])
@over("name", [name for name in NOISE_SCALES if name != "ode"])
def test_moments_for_every_noise_scale(name, eta, schedule):
    check_weak_order(lambda levels: er_sde(levels, 3, name, eta), schedule, 2)


@over("exact", [False, True])
def test_the_third_order_needs_the_whole_parabola(exact, schedule, mixture):
    """The published solver misses -s_1 M_1: on data whose x0 is a parabola in sigma / alpha only `exact` is exact."""
    levels = schedule.at_lambda([-1.0, -0.7, -0.3, 0.2])
    row = er_sde(levels, 3, "ode", exact=exact).rows[2, 0]
    start, end = levels.ratio[2:]
    x0 = np.array([(r - start) ** 2 for r in levels.ratio[2::-1]])
    # x / phi at the end minus at the start is int x0 d(1 / phi), phi(x) = x.
    integral = -quad(lambda v: (v - start) ** 2 / v**2, start, end)[0] * end * levels.alpha[3]
    assert (abs(row[2:5] @ x0 - integral) < 1e-12) == exact


@over("order", [3], full=[1, 2, 3])
@over("name", NOISE_SCALES)
@over("betas", ["squaredcos_cap_v2"], full=["scaled_linear", "squaredcos_cap_v2"])
def test_extreme_levels(name, order, betas):
    """Zero terminal SNR, cosine betas and flow matching, whose sigma / alpha is huge or infinite; few calls."""
    for options in (
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"prediction_type": "flow_prediction"},
        {"final_sigmas_type": "sigma_min"},
    ):
        scheduler = sd_ext.ERSDEScheduler(
            **{**SD, "beta_schedule": betas}, solver_order=order, noise_scale=name, **options
        )
        for calls in (1, 2, 3, 9):
            scheduler.set_timesteps(calls)
            for begin in range(calls):
                assert scheduler.table(begin).calls == calls - begin


@over("option, value", [("noise_scale", "sde_6"), ("solver_order", 4), ("eta", -0.1)])
def test_bad_options_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} must be"):
        sd_ext.make_scheduler("er sde", SD, **{option: value})


@over("name", ["er_sde", "ER SDE", "ER-SDE", "ERSDEScheduler"])
def test_names(name):
    scheduler = sd_ext.make_scheduler(name)
    assert (type(scheduler), scheduler.config["solver_order"]) == (sd_ext.ERSDEScheduler, 3)
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 4, 2, 2)
    assert torch.isfinite(scheduler.step(x, scheduler.timesteps[0], x).prev_sample).all()
