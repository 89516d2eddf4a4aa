"""UniPC and SA-Solver: against Diffusers, against the papers' formulas restated in float64, and against each other."""

from __future__ import annotations

import warnings

import diffusers
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import lagrange

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.corrector import adams
from sd_ext.schedulers.kernel import Kernel
from sd_ext.schedulers.multistage import with_nodes
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.samplers.sa_solver import sa_solver
from sd_ext.schedulers.samplers.unipc import unipc

from ..conftest import SD
from ..gaussian import error
from ..mixture import run_table
from ..over import over
from ..test_orders import COUNTS, graded
from ..test_parity import assert_close, both, network, sample
from ..test_stochastic import check_weak_order, in_lambda

HALVES = ("bh1", "bh2")
UNIPC, SA = "UniPCMultistepScheduler", "SASolverScheduler"


def start() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def in_pairs(levels):
    """Every step but one to the clean end in two calls."""
    steps = len(levels) - 1
    sizes = [2] * (steps - 1) + [1 if levels.sigma[-1] == 0 else 2]
    return with_nodes(levels, sizes, lambda steps, i, size: steps[i + 1 : i + 2])


def slope_of(make, schedule, mixture) -> float:
    levels = [graded(schedule, n) for n in COUNTS]
    x = mixture.sample(24, levels[0].alpha[0], levels[0].sigma[0], seed=1)
    exact = mixture.solve(x, levels[0])
    errors = [np.sqrt(np.mean((run_table(make(at), mixture, x) - exact) ** 2)) for at in levels]
    return -float(np.polyfit(np.log(COUNTS), np.log(errors), 1)[0])


# ---- UniPC ----------------------------------------------------------------------------------------------------------

END = {"final_sigmas_type": "sigma_min"}
SAME = [
    *({"solver_order": order} for order in (1, 2, 3)),
    *({"solver_order": order, "solver_type": "bh1", **END} for order in (1, 2, 3)),
    *({"solver_order": order, "predict_x0": False, **END} for order in (1, 2, 3)),
    {"predict_x0": False, "solver_type": "bh1", **END},
    {"lower_order_final": False, **END},
    {"solver_order": 3, "lower_order_final": False, **END},
    {"solver_order": 3, "disable_corrector": [0, 1, 4]},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"thresholding": True, "sample_max_value": 2.0},
]


@over("calls", [2, 11], full=[1, 2, 5, 20])
@over("spacing", ["leading", "trailing"], full=["leading", "trailing", "linspace"])
@over("config", SAME)
def test_unipc_samples_as_diffusers(config, spacing, calls):
    theirs, ours = both(UNIPC, **config, timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0)
    assert_close(sample(ours, calls), sample(theirs, calls))


@over("calls", [2, 5, 20])
@over("flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_unipc_on_diffusers_other_grids(flag, calls):
    theirs, ours = both(UNIPC, **{flag: True}, solver_order=3)
    assert_close(sample(ours, calls), sample(theirs, calls))


@over("predict_x0", [True, False])
@over("half", HALVES)
@over("order", [1, 2, 3, 4])
def test_unipc_is_diffusers_arithmetic_in_float64(order, half, predict_x0):
    """Given the same float64 sigmas, Diffusers' corrected and predicted samples come out of one row a call."""
    theirs, ours = both(
        UNIPC, solver_order=order, solver_type=half, predict_x0=predict_x0, timestep_spacing="trailing", **END
    )
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(12)
    theirs.sigmas = torch.from_numpy(ours.table().levels.ratio)
    x = mine = start()
    for t in theirs.timesteps:
        x = theirs.step(network(x), t, x).prev_sample
        mine = ours.step(network(mine), t, mine).prev_sample
        torch.testing.assert_close(mine, x, atol=1e-10, rtol=1e-10)


def test_deviation_unipc_bh1_ends_clean():
    """Diffusers multiplies B(h) = -inf by zero in bh1's step to sigma = 0, which is NaN; ours is first order there."""
    theirs, ours = both(UNIPC, solver_type="bh1")
    assert torch.isnan(sample(theirs, 8)).all()
    assert torch.isfinite(sample(ours, 8)).all()


@over("config", [{"predict_x0": False}, {"lower_order_final": False}])
def test_deviation_unipc_ends_clean_whatever_its_options(config):
    """Diffusers takes steps of infinite length to sigma = 0 at full order or on eps: NaN. Ours are first order."""
    theirs, ours = both(UNIPC, **config)
    assert not torch.isfinite(sample(theirs, 8)).all()
    assert torch.isfinite(sample(ours, 8)).all()


@over("basis", ["x0", "eps"])
@over("half", HALVES)
@over("order", [1, 2, 3, 4])
def test_unipc_converges_one_order_higher(order, half, basis, schedule, mixture):
    slope = slope_of(lambda at: unipc(at, order, half, basis, lower_order_final=False), schedule, mixture)
    assert slope == pytest.approx(order + 1, abs=0.5 if order == 4 else 0.25)


def test_without_its_corrector_unipc_loses_the_order(schedule, mixture):
    def make(at):
        return unipc(at, 3, lower_order_final=False, disable_corrector=range(len(at)))

    assert slope_of(make, schedule, mixture) == pytest.approx(3, abs=0.25)


def test_b_of_h_drops_out_of_order_three(schedule):
    """The two halves differ in the two-node steps of the start and the end only."""
    one, two = (unipc(graded(schedule, 12), 3, half).rows for half in HALVES)
    differ = np.flatnonzero(np.abs(one - two).max((1, 2)) > 1e-12)
    np.testing.assert_array_equal(differ, [1, 2, 10, 11])


def test_the_corrector_needs_no_stash_and_one_prediction_more(schedule):
    table = unipc(graded(schedule, 12), 3)
    assert table.history == 4
    assert not table.rows[:, 1].any()


def test_unipc_from_other_families_configs():
    for solver_type in ("midpoint", "heun", "logrho"):
        assert sd_ext.UniPCMultistepScheduler(solver_type=solver_type).config["solver_type"] == "bh2"
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, solver_type="heun", solver_order=3)
    ours = sd_ext.UniPCMultistepScheduler.from_config(theirs.config)
    assert (ours.config["solver_type"], ours.config["solver_order"]) == ("bh2", 3)


@over(
    "options, says",
    [
        ({"solver_order": 5}, "solver_order must be one of .*got 5"),
        ({"solver_type": "bh3"}, "solver_type must be one of .*got 'bh3'"),
        ({"disable_corrector": [-1]}, r"disable_corrector must be .*got \[-1\]"),
        ({"disable_corrector": 3}, "disable_corrector must be .*got 3"),
        ({"solver_p": 1}, "solver_p must be .*got 1"),
    ],
)
def test_unipc_refuses(options, says):
    with pytest.raises(InputError, match=says):
        sd_ext.UniPCMultistepScheduler(**options)


@over(
    "name, options",
    [
        ("UniPC", (2, "bh2")),
        ("uni_pc", (3, "bh1")),
        ("uni pc bh2", (3, "bh2")),
        ("UniPCMultistepScheduler", (2, "bh2")),
    ],
)
def test_unipc_by_its_names(name, options):
    config = sd_ext.make_scheduler(name).config
    assert (config["solver_order"], config["solver_type"]) == options


# ---- both -----------------------------------------------------------------------------------------------------------

OPTIONS = [
    *(
        {"cls": UNIPC, "solver_order": 4, "solver_type": half, "predict_x0": x0}
        for half in HALVES
        for x0 in (True, False)
    ),
    *(
        {"cls": SA, "corrector_order": 4, "algorithm_type": algorithm, "pece": pece}
        for algorithm in ("data_prediction", "noise_prediction")
        for pece in (False, True)
    ),
]
MODELS = [
    {},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"prediction_type": "flow_prediction"},
]


@over("end", ["zero", "sigma_min"])
@over("model", MODELS)
@over("options", OPTIONS)
@over("grids, counts", [(["linspace"], (1, 3, 9))], full=[(["linspace", "karras", "beta"], (1, 2, 3, 9))])
def test_every_option_holds_its_invariants_on_every_model(grids, counts, options, model, end):
    """From every start: at birth a table shows that a known picture is found, in float64 also where alpha is 0."""
    cls, windowless = options["cls"], {"tau_start": 2000, "tau_end": -1} if options["cls"] == SA else {}
    rest = {name: value for name, value in options.items() if name != "cls"}
    for grid in grids:
        settings = {**SD, **model, **rest, **windowless, "grid": grid, "final_sigmas_type": end}
        scheduler = getattr(sd_ext, cls)(**settings, lower_order_final=False)
        for calls in counts:
            scheduler.set_timesteps(calls)
            for begin in range(calls):
                assert scheduler.table(begin).calls == calls - begin


# ---- SA-Solver ------------------------------------------------------------------------------------------------------


def integral(kernel, nodes, which):
    """A int_0^1 k e^{-k(1-s)} L(s) ds with L the polynomial that is 1 at one node and 0 at the others."""
    basis = lagrange(nodes, np.eye(len(nodes))[which])
    weighted = quad(lambda s: kernel.k * np.exp(-kernel.k * (1 - s)) * basis(s), 0, 1, epsabs=1e-13, epsrel=1e-12)
    return kernel.scale * weighted[0]


@over("tau", [0.0, 0.3, 1.0])
@over("nodes", [(0.0,), (0.0, -0.8), (1.0, 0.0, -0.8), (1.0, 0.0, -0.8, -2.1)])
def test_adams_weights_are_the_papers_integrals(nodes, tau, schedule):
    """arXiv 2309.05019, eq. 15 and 18, by numerical quadrature."""
    kernel = Kernel.of(schedule.at_lambda([-0.4, 0.3]), 0, 1, "x0", eta=tau**2)
    expected = [integral(kernel, nodes, which) for which in range(len(nodes))]
    np.testing.assert_allclose(adams(kernel, nodes), expected, atol=1e-11)


@over("order", [1, 2, 3, 4])
@over("tau", [0.0, 0.6, 1.0])
@over("algorithm", ["data_prediction", "noise_prediction"])
def test_diffusers_integrals_are_ours(algorithm, tau, order, schedule):
    """Diffusers' closed forms in float64, before its change of order 2."""
    theirs = diffusers.SASolverScheduler(**SD, algorithm_type=algorithm)
    levels = schedule.at_lambda([-1.5, -1.1, -0.8, -0.4, 0.3])
    lam = torch.from_numpy(levels.lam)
    nodes = [lam[3 - j] for j in range(order)]
    integrals = theirs.get_coefficients_fn(order, lam[3], lam[4], nodes, torch.tensor(tau, dtype=torch.float64))
    if algorithm == "data_prediction":
        kernel = Kernel.of(levels, 3, 4, "x0", eta=tau**2)
        scale = (1 + tau**2) * levels.sigma[4] * np.exp(-(tau**2) * levels.lam[4])
    else:
        kernel = Kernel.sde_eps(levels, 3, 4, tau**2)
        scale = -(1 + tau**2) * levels.alpha[4]
    s = [(levels.lam[3 - j] - levels.lam[3]) / (levels.lam[4] - levels.lam[3]) for j in range(order)]
    np.testing.assert_allclose(kernel.interpolate(s), [scale * float(v) for v in integrals], rtol=1e-8)


@over("calls", [2, 11], full=[1, 2, 5, 20])
@over("spacing", ["leading"], full=["leading", "trailing", "linspace"])
@over("tau", [0.0, 0.4, 1.0])
@over("orders", [(1, 1), (2, 2), (3, 3), (3, 4)])
def test_sa_solver_samples_as_diffusers(orders, tau, spacing, calls):
    """With its order 2, and down to the least noise of training, where Diffusers always stops."""
    config = {**SD, "predictor_order": orders[0], "corrector_order": orders[1], "timestep_spacing": spacing}
    theirs = diffusers.SASolverScheduler(**config, tau_func=lambda t: tau)
    ours = sd_ext.SASolverScheduler(**config, **END, tau=tau, tau_start=999, tau_end=0, simplified_second_order=True)
    options = {"generator": True, "dtype": torch.float32}
    assert_close(sample(ours, calls, **options), sample(theirs, calls, **options), 3e-4)


@over("tau", [0.0, 1.0])
def test_sa_solver_on_noise_predictions_samples_as_diffusers(tau):
    config = {**SD, "algorithm_type": "noise_prediction", "timestep_spacing": "trailing"}
    theirs = diffusers.SASolverScheduler(**config, tau_func=lambda t: tau)
    ours = sd_ext.SASolverScheduler(**config, **END, tau=tau, tau_start=999, tau_end=0)
    options = {"generator": True, "dtype": torch.float32}
    assert_close(sample(ours, 30, **options), sample(theirs, 30, **options), 1e-3)


def test_deviation_sa_solver_integrates_the_line_in_order_two(schedule):
    """Diffusers takes k / 2 for the first moment in order 2, which is not in the paper; ours integrates the line."""
    levels = schedule.at_lambda([-1.0, 0.0, 1.0])
    exact, simplified = (sa_solver(levels, 2, 0, lower_order_final=False, simplified=s).rows[1, 0] for s in (0, 1))
    kernel = Kernel.of(levels, 1, 2, "x0", eta=1.0)
    assert exact[3] == pytest.approx(-kernel.first)
    assert simplified[3] == pytest.approx(-kernel.scale * kernel.k / 2)
    assert simplified[3] / exact[3] > 1.7


def test_deviation_sa_solver_ends_clean():
    """Diffusers stops at t = 0 with sigma = 0.029 left, as grain (compare #6295); ours ends clean unless told."""
    theirs, ours = both(SA)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    assert float(theirs.sigmas[-1]) == pytest.approx(0.0292, abs=1e-4)
    assert float(ours.sigmas[-1]) == 0


def test_deviation_sa_solver_on_karras_has_no_step_of_length_zero():
    """Diffusers repeats the last sigma there, and a call is spent on nothing."""
    theirs, ours = both(SA, use_karras_sigmas=True)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    assert theirs.sigmas[-1] == theirs.sigmas[-2]
    assert torch.all(ours.sigmas.diff() < 0)


def test_tau_is_a_window_of_timesteps():
    """Diffusers' default tau_func: 1 from t = 800 to 200, else 0."""
    scheduler = sd_ext.make_scheduler("sa-solver", grid="trailing")
    scheduler.set_timesteps(20)
    table = scheduler.table()
    theirs = diffusers.SASolverScheduler(**SD)
    np.testing.assert_array_equal(table.rows[:, 0, -1] > 0, [theirs.tau_func(t) == 1 for t in table.levels.t[:-1]])


@over("order", [1, 2, 3])
def test_at_tau_zero_sa_solver_is_unipc(order, schedule):
    """UniPC's B(h) = h is the simplified order 2 of SA-Solver: the same table, eps included."""
    levels = graded(schedule, 12)
    for basis, algorithm in (("x0", "data_prediction"), ("eps", "noise_prediction")):
        if basis == "eps" and order < 3:
            continue  # on eps SA-Solver integrates, UniPC takes halves
        sa = sa_solver(levels, order, order + 1, 0.0, algorithm, simplified=True, lower_order_final=False).rows
        pc = unipc(levels, order, "bh1", basis, lower_order_final=False).rows
        steady = slice(None) if basis == "x0" else slice(3, None)
        np.testing.assert_allclose(sa[steady], pc[steady], atol=1e-13)


def test_first_order_limits(schedule):
    levels = schedule.at([999.0, 700.0, 300.0, 20.0])
    np.testing.assert_allclose(sa_solver(levels, 1, 0, 0.0).rows, first_order(levels).rows, atol=1e-14)
    np.testing.assert_allclose(sa_solver(levels, 1, 0, 1.0).rows, first_order(levels, eta=1.0).rows, atol=1e-14)


@over("pece", [False, True])
@over("orders", [(2, 0), (1, 2), (3, 2), (3, 4)], full=[(1, 0), (2, 0), (3, 0), (1, 2), (2, 2), (2, 3), (3, 2), (3, 4)])
def test_sa_solver_orders(orders, pece, schedule, mixture):
    """The corrector's, at most one more than the predictor's; without a corrector, the predictor's."""

    def make(at):
        return sa_solver(in_pairs(at) if pece else at, *orders, 0.0, lower_order_final=False)

    assert slope_of(make, schedule, mixture) == pytest.approx(orders[1] or orders[0], abs=0.25)


CASES = {
    "predictor 2": (2, 0),
    "2, 2": (2, 2),
    "3, 4": (3, 4),
}


@over("pece", [False, True])
@over("tau", [0.3, 1.0])
@over("name", CASES)
def test_sa_solver_moments(name, tau, pece, schedule):
    def make(levels):
        return sa_solver(in_pairs(levels) if pece else levels, *CASES[name], tau)

    assert make(in_lambda(schedule, 8)).stochastic
    check_weak_order(make, schedule, 2)


def test_noise_prediction_moments(schedule):
    """Only in the limit of small steps, as for SDE-DPM-Solver."""
    check_weak_order(lambda levels: sa_solver(levels, 2, 2, 0.5, "noise_prediction"), schedule, 1)


@over("pece", [False, True])
def test_the_corrector_keeps_the_predictors_noise(pece, schedule):
    """On one Gaussian the predictions are linear: the exact SDE solution's variance is kept."""
    levels = schedule.at_lambda(np.linspace(-2.0, 2.0, 41))
    assert error(sa_solver(in_pairs(levels) if pece else levels, 3, 4)) < 0.01


def test_pece_evaluates_where_it_corrected_to():
    scheduler = sd_ext.make_scheduler("sa-solver pece", grid="karras")
    scheduler.set_timesteps(11)
    levels = scheduler.levels
    assert levels.stage.tolist() == [0, 1] * 5 + [0]
    np.testing.assert_array_equal(levels.t[1:-1:2], levels.t[2:-1:2])


def test_a_run_from_zero_terminal_snr_takes_no_infinite_noise():
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    for pece in (False, True):
        scheduler = sd_ext.SASolverScheduler(
            **config, tau_start=999, tau_end=0, algorithm_type="noise_prediction", pece=pece
        )
        scheduler.set_timesteps(9)
        assert sample(scheduler, 9, generator=True).abs().max() < 100


@over(
    "options, says",
    [
        ({"predictor_order": 0}, "predictor_order must be one of .*got 0"),
        ({"corrector_order": 5}, "corrector_order must be one of .*got 5"),
        ({"tau": -1.0}, "tau must be 0 to inf, got -1"),
        ({"tau_func": "x"}, "tau_func must be .*got 'x'"),
        ({"algorithm_type": "x"}, "algorithm_type must be one of"),
        ({"pece": True, "corrector_order": 0}, "pece=True needs a corrector_order of 1 to 4, got 0"),
    ],
)
def test_sa_solver_refuses(options, says):
    with pytest.raises(InputError, match=says):
        sd_ext.SASolverScheduler(**options)


def test_sa_solver_from_other_families_configs():
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, algorithm_type="sde-dpmsolver++")
    assert sd_ext.SASolverScheduler.from_config(theirs.config).config["algorithm_type"] == "data_prediction"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.SASolverScheduler(**SD, algorithm_type="noise_prediction", predictor_order=3)
    ours = sd_ext.SASolverScheduler.from_config(theirs.config)
    assert (ours.config["algorithm_type"], ours.config["predictor_order"]) == ("noise_prediction", 3)


PREDICTOR_CORRECTORS = [
    *({"cls": UNIPC, "solver_order": order, "solver_type": half} for order in (2, 3) for half in HALVES),
    {"cls": SA, "algorithm_type": "noise_prediction"},
]


@over("source", PREDICTOR_CORRECTORS)
@over("cls", dict.fromkeys(i.cls for i in sd_ext.list_samplers()))
def test_other_families_take_their_defaults_from_these_configs(cls, source):
    """As Diffusers' DPM-Solver does with UniPC's solver_type."""
    options = {**SD, **source}
    name = options.pop("cls")
    for library in (diffusers, sd_ext):
        ours = cls.from_config(getattr(library, name)(**options).config)
        assert ours.config["beta_schedule"] == "scaled_linear"


@over("name", ["SA Solver", "sa_solver", "SASolverScheduler"])
def test_sa_solver_by_its_names(name):
    config = sd_ext.make_scheduler(name).config
    assert (config["predictor_order"], config["corrector_order"], config["pece"]) == (2, 2, False)
    assert sd_ext.make_scheduler("sa_solver_pece").config["pece"]
