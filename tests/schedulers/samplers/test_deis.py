"""LMS and DEIS: the integrals against SciPy's quadrature, the order of each, what coincides, and Diffusers."""

from __future__ import annotations

import warnings

import diffusers
import numpy as np
import pytest
from scipy.integrate import fixed_quad, quad

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.samplers.deis import exponential_adams
from sd_ext.schedulers.samplers.dpm_solver import multistep
from sd_ext.schedulers.schedule import ZERO

from ..conftest import SD
from ..mixture import Mixture, run_table
from ..over import over
from ..test_orders import COUNTS, narrow
from ..test_parity import assert_close, both, sample

VARIABLES = ("rho", "log_rho", "t")


@pytest.fixture
def levels(schedule):
    """Steps of very different length, some between training timesteps."""
    return schedule.at([999.0, 940.0, 700.25, 640.0, 411.5, 300.0, 120.0, 100.0, 3.5])


# ---- the integral --------------------------------------------------------------------------------------------------


def lagrange(nodes, j, u):
    return np.prod([(u - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j], axis=0)


def by_quadrature(levels, i, order, variable, schedule):
    """alpha' int L_j(u) d rho by SciPy, piece by piece in t, d rho / dt = -rho d lambda / dt."""
    knots = np.arange(np.floor(levels.t[i + 1]) + 1, levels.t[i])
    edges = [levels.t[i + 1], *knots, levels.t[i]]
    of_t = {
        "t": lambda t, rho: t,
        "rho": lambda t, rho: rho,
        "log_rho": lambda t, rho: np.log(rho),
    }[variable]
    nodes = [of_t(levels.t[i - k], levels.ratio[i - k]) for k in range(order)]
    lam = schedule.at(edges).lam
    weights = np.zeros(order)
    for low, high, start, end in zip(edges, edges[1:], lam, lam[1:], strict=False):
        fall = (end - start) / (high - low)

        def integrands(t, low=low, start=start, fall=fall):
            rho = np.exp(-start - fall * (t - low))
            return np.array([lagrange(nodes, j, of_t(t, rho)) * rho * fall for j in range(order)])

        weights += fixed_quad(integrands, low, high, n=8)[0]  # smooth within a timestep: exact to rounding
    return levels.alpha[i + 1] * weights


@over("order", [2, 3, 4])
@over("variable", VARIABLES)
def test_weights_are_the_integrals(variable, order, levels, schedule):
    table = exponential_adams(levels, order, variable, schedule)
    for i in range(order - 1, table.calls):
        expected = by_quadrature(levels, i, order, variable, schedule)
        np.testing.assert_allclose(table.rows[i, 0, 2:-1], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@over("variable", ["rho", "t"])
def test_the_clean_end_is_integrated_to(variable, schedule):
    """In rho to 0; in t, where nothing is told apart below t = 0, down to its rho and then at t = 0."""
    levels = schedule.at([400.0, 200.0, 60.0]).then(ZERO)
    weights = exponential_adams(levels, 3, variable, schedule).rows[2, 0, 2:-1]
    if variable == "rho":
        nodes = levels.ratio[2::-1]
        expected = [quad(lambda r, j=j: lagrange(nodes, j, r), nodes[0], 0.0)[0] for j in range(3)]
    else:
        trained = schedule.at([400.0, 200.0, 60.0, 0.0])
        expected = by_quadrature(trained, 2, 3, "t", schedule) / trained.alpha[-1]
        expected -= trained.ratio[-1] * np.array([lagrange(levels.t[2::-1], j, 0.0) for j in range(3)])
    np.testing.assert_allclose(weights, expected, atol=1e-12)


def test_log_rho_is_first_order_into_the_clean_end(schedule):
    levels = schedule.at([400.0, 200.0, 60.0]).then(ZERO)
    rows = exponential_adams(levels, 3, "log_rho").rows
    assert np.count_nonzero(rows[1, 0, 2:-1]) == 2 and np.count_nonzero(rows[2, 0, 2:-1]) == 1


@over("order", [1, 2, 3, 4])
@over("variable", VARIABLES)
def test_every_order(variable, order, schedule, mixture):
    start = narrow(schedule, 8)
    x = mixture.sample(24, start.alpha[0], start.sigma[0], seed=1)
    exact = mixture.solve(x, start)
    tables = [exponential_adams(narrow(schedule, n), order, variable, schedule) for n in COUNTS]
    errors = [np.sqrt(np.mean((run_table(table, mixture, x) - exact) ** 2)) for table in tables]
    assert -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0] == pytest.approx(order, abs=0.25)


# ---- what coincides ------------------------------------------------------------------------------------------------


def test_log_rho_is_dpm_solver_with_whole_polynomials(levels):
    """DEIS log-rho of order 3 is DPM-Solver-3 multistep with its parabola integrated, order 2 its "heun" type."""
    for order in (2, 3):
        dpm = multistep(levels, order, "dpmsolver", "heun", exact=True, lower_order_final=False)
        np.testing.assert_allclose(exponential_adams(levels, order, "log_rho").rows, dpm.rows, atol=1e-11)


def test_three_variables_are_one_at_order_1(levels, schedule):
    rows = [exponential_adams(levels, 1, variable, schedule).rows for variable in VARIABLES]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_deis_rho_ab_of_order_4_is_lms(levels):
    deis = sd_ext.make_scheduler("deis rho-ab", SD, solver_order=4)
    np.testing.assert_array_equal(
        deis._table(levels, 0.0).rows, sd_ext.make_scheduler("lms", SD)._table(levels, 0).rows
    )


# ---- edges ---------------------------------------------------------------------------------------------------------


def test_levels_that_share_a_timestep_are_one_node():
    """sigma_max beyond the training makes several calls at t = 999: in t they are one point."""
    scheduler = sd_ext.make_scheduler("deis t-ab karras", SD, sigma_max=300.0, sigma_min=0.001, solver_order=4)
    scheduler.set_timesteps(20)
    table = scheduler.table()
    assert np.count_nonzero(table.levels.t[:-1] == 999) > 2
    assert np.abs(table.rows).max() < 1e3


@over("variable", VARIABLES)
@over(
    "config",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "grid": "linspace"},
        {"prediction_type": "flow_prediction"},
    ],
)
@over("final", ["zero", "sigma_min"])
@over("calls", [1, 3, 20], full=[1, 2, 3, 30, 1000])
def test_a_point_is_sampled_exactly(variable, config, final, calls):
    if final == "sigma_min" and config.get("prediction_type") == "flow_prediction":
        final = "zero"
    scheduler = sd_ext.DEISMultistepScheduler(**config, solver_order=4, variable=variable, final_sigmas_type=final)
    try:
        scheduler.set_timesteps(calls)
    except InputError:  # a grid that cannot place so many
        assert calls == 1000
        return
    table = scheduler.table()
    point = Mixture(np.ones(1), np.array([[0.7, -0.3]]), np.zeros(1))
    x = point.sample(3, table.levels.alpha[0], table.levels.sigma[0], seed=0)
    end = run_table(table, point, x)
    levels = table.levels
    expected = levels.alpha[-1] * point.means + levels.sigma[-1] * (x - levels.alpha[0] * point.means) / levels.sigma[0]
    np.testing.assert_allclose(end, expected, atol=1e-6)
    # a start in the middle
    again = scheduler.table(calls // 2)
    assert again.calls == calls - calls // 2 and np.isfinite(again.rows).all()


def test_lower_order_final():
    for calls, orders in ((10, [1, 2, 3, 3, 3, 3, 3, 3, 2, 1]), (15, [1, 2, *[3] * 13])):
        scheduler = sd_ext.make_scheduler("deis", SD, final_sigmas_type="sigma_min")
        scheduler.set_timesteps(calls)
        assert np.count_nonzero(scheduler.table().rows[:, 0, 2:-1], axis=1).tolist() == orders
    for name in ("deis rho-ab", "deis t-ab"):
        scheduler = sd_ext.make_scheduler(name, SD)
        scheduler.set_timesteps(10)
        assert np.count_nonzero(scheduler.table().rows[:, 0, 2:-1], axis=1).tolist() == [1, 2, *[3] * 8]


@over(
    "name, option, value, allowed",
    [
        ("deis", "solver_order", 5, "1, 2, 3, 4"),
        ("deis", "variable", "sigma", "rho.*log_rho.*t"),
        ("deis", "algorithm_type", "euler", "deis"),
        ("lms", "max_order", 0, "1, 2, 3, 4"),
    ],
)
def test_bad_options(name, option, value, allowed):
    with pytest.raises(InputError, match=f"{option} must be .*{allowed}.*{value}"):
        sd_ext.make_scheduler(name, SD, **{option: value})


# ---- Diffusers -----------------------------------------------------------------------------------------------------

DEIS, LMS = "DEISMultistepScheduler", "LMSDiscreteScheduler"
SPACINGS = ("leading", "trailing", "linspace")
SAME = [(DEIS, {"solver_order": order, "timestep_spacing": s}) for order in (1, 2, 3) for s in SPACINGS]
SAME += [(DEIS, {"timestep_spacing": "leading", "prediction_type": kind}) for kind in ("v_prediction", "sample")]
SAME += [(LMS, {"timestep_spacing": s, "steps_offset": 1}) for s in SPACINGS]
SAME += [(LMS, {"use_karras_sigmas": True})]


@over("calls", [2, 11], full=[2, 5, 10, 20, 50])
@over("name, config", SAME)
def test_same_samples(name, config, calls):
    theirs, ours = both(name, **config)
    if name == DEIS:
        ours = sd_ext.DEISMultistepScheduler(**SD, **config, final_sigmas_type="sigma_min")
    # DEIS rounds its sigmas to float32 and takes differences of logarithms
    assert_close(sample(ours, calls), sample(theirs, calls), 2e-3 if name == DEIS else 1e-4)


def test_defaults_are_diffusers():
    for name in (DEIS, LMS):
        theirs, ours = getattr(diffusers, name)(), getattr(sd_ext, name)()
        for option in set(theirs.config) & set(ours.config) - {"_use_default_values"}:
            assert ours.config[option] == theirs.config[option], option


@over("kind", ["dpmsolver++", "sde-dpmsolver++"])
def test_configs_of_dpm_solver_will_do(kind):
    config = diffusers.DPMSolverMultistepScheduler(**SD, algorithm_type=kind, solver_order=3).config
    scheduler = sd_ext.DEISMultistepScheduler.from_config(config)
    assert (scheduler.config["algorithm_type"], scheduler.config["solver_order"]) == ("deis", 3)


def test_deviation_deis_ends_clean():
    """Diffusers' DEIS leaves the noise of t = 0 in the picture; ours does with final_sigmas_type="sigma_min" only."""
    theirs, ours = both(DEIS)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    assert float(theirs.sigmas[-1]) == pytest.approx(0.0292, abs=1e-4) and float(ours.sigmas[-1]) == 0


@over("flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_deviation_deis_has_no_step_of_length_zero(flag):
    """Diffusers' DEIS repeats the last sigma of these grids, so that its last call changes nothing (#6295)."""
    theirs, _ = both(DEIS, **{flag: True})
    ours = sd_ext.DEISMultistepScheduler(**SD, **{flag: True}, final_sigmas_type="sigma_min")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.set_timesteps(10)
    ours.set_timesteps(10)
    assert theirs.sigmas[-1] == theirs.sigmas[-2]
    assert np.all(np.diff(ours.sigmas.numpy()) < 0)


def test_deviation_deis_third_order_is_exact(levels):
    """Diffusers' third-order weights come from float32 logarithms with cancellation: wrong in the fourth digit at 145
    steps, where ours are right to 1e-12.
    """
    theirs, ours = both(DEIS, solver_order=3)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(145)
    rho = [float(r) for r in theirs.sigmas[68:72].double()]
    i = 70

    def published(t, b, c, d):
        numbers = [np.float32(v) for v in (t, b, c, d)]
        t, b, c, d = numbers
        log = np.log
        top = t * (log(c) * (log(d) - log(t) + 1) - log(d) * log(t) + log(d) + log(t) ** 2 - 2 * log(t) + 2)
        return top / ((log(b) - log(c)) * (log(b) - log(d)))

    r2, r1, r0, end = rho
    rounded = published(end, r0, r1, r2) - published(r0, r0, r1, r2)
    exact = quad(lambda r: lagrange(np.log([r0, r1, r2]), 0, np.log(r)), r0, end, epsrel=1e-13)[0]
    table = ours.table()
    mine = table.rows[i, 0, 2] / table.levels.alpha[i + 1]
    assert abs(rounded / exact - 1) > 1e-4
    assert mine == pytest.approx(exact, rel=1e-4)  # the same levels, save that theirs are rounded


def test_t_ab_needs_the_models_own_schedule(levels, schedule):
    """ComfyUI's "deis" takes t from EDM's continuous VP schedule; ours is the timestep the network is told."""
    other = NoiseSchedule.from_config({"beta_schedule": "linear"})
    one, two = (exponential_adams(levels, 3, "t", s).rows for s in (schedule, other))
    assert np.abs(one - two).max() > 1e-3
