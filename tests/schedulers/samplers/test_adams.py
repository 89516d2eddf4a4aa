"""PLMS, PNDM, iPNDM and gradient estimation against the published formulas, each other and Diffusers."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.samplers.adams import ADAMS_BASHFORTH, gradient_estimation, plms, pndm
from sd_ext.schedulers.samplers.deis import exponential_adams
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.schedule import Levels

from ..conftest import SD
from ..mixture import Mixture, run_table
from ..over import over
from ..test_parity import assert_close, both, sample


@pytest.fixture
def levels(schedule):
    """Steps of very different length."""
    return schedule.at([999.0, 940.0, 700.0, 640.0, 411.5, 300.0, 120.0, 100.0, 1.0])


# ---- the rows ----------------------------------------------------------------------------------------------------


@over("one, other", [("ipndm", "plms"), ("ipndm-v", "lms")])
def test_two_names_of_the_same_rows(one, other, levels):
    rows = [sd_ext.make_scheduler(name, SD)._table(levels, 0.0).rows for name in (one, other)]
    np.testing.assert_array_equal(*rows)


@over("order", [1, 2, 3, 4])
def test_fixed_weights_are_the_variable_ones_where_steps_are_equal(order, schedule):
    levels = schedule.at_lambda(-np.log(np.linspace(9.0, 0.5, 12)))
    np.testing.assert_allclose(
        plms(levels, order).rows, exponential_adams(levels, order, "rho").rows, atol=1e-12, rtol=1e-12
    )


def test_gamma_names_known_samplers(levels):
    """gamma = 1 is DDIM, gamma = 3/2 second-order Adams-Bashforth."""
    np.testing.assert_array_equal(
        gradient_estimation(levels, 1.0).rows[:, 0, :3], first_order(levels, basis="eps").rows[:, 0, :3]
    )
    assert not gradient_estimation(levels, 1.0).rows[:, 0, 3].any()
    np.testing.assert_allclose(gradient_estimation(levels, 1.5).rows, plms(levels, 2).rows, atol=1e-14)


def test_gradient_estimation_is_the_published_step(levels, mixture):
    """Restated in the paper's coordinates: x / alpha moves by (sigma' - sigma) (gamma eps + (1 - gamma) eps_before)."""
    x = mixture.sample(6, levels.alpha[0], levels.sigma[0], seed=2)
    y, before, ratio = x / levels.alpha[0], None, levels.ratio
    for i in range(len(levels) - 1):
        eps = mixture.eps(levels.alpha[i] * y, levels.alpha[i], levels.sigma[i])
        y = y + (ratio[i + 1] - ratio[i]) * (eps if before is None else 2.0 * eps - before)
        before = eps
    np.testing.assert_allclose(run_table(gradient_estimation(levels), mixture, x), levels.alpha[-1] * y, atol=1e-11)


def transfer(x, eps, now, then):
    """Eq. 11 of arXiv 2202.09778, from the cumulated alphas `now` to `then`."""
    scale = np.sqrt(now) * (np.sqrt((1 - then) * now) + np.sqrt((1 - now) * then))
    return np.sqrt(then / now) * x - (then - now) / scale * eps


@over("calls", [13, 20, 9, 5])
def test_pndm_is_algorithm_2(calls, schedule, mixture):
    """With Stable Diffusion's offset, as without one the last call is made where the run ends, and changes nothing."""
    scheduler = sd_ext.make_scheduler("pndm", SD, steps_offset=1)
    scheduler.set_timesteps(calls)
    levels = scheduler.levels
    starts = min(3, (calls - 1) // 4)
    t = levels.t[np.append(levels.stage == 0, True)]

    def bar(t):
        return float(schedule.at([t]).alpha[0] ** 2)

    def eps(x, t):
        return mixture.eps(x, np.sqrt(bar(t)), np.sqrt(1 - bar(t)))

    start = x = mixture.sample(6, levels.alpha[0], levels.sigma[0], seed=2)
    history = []
    for i in range(len(t) - 1):
        now, then = bar(t[i]), bar(t[i + 1])
        history.append(eps(x, t[i]))
        if i < starts:
            half = (t[i] + t[i + 1]) / 2
            e1 = history[-1]
            e2 = eps(transfer(x, e1, now, bar(half)), half)
            e3 = eps(transfer(x, e2, now, bar(half)), half)
            e4 = eps(transfer(x, e3, now, then), t[i + 1])
            mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            last = history[::-1][:4]
            mean = sum(w * e for w, e in zip(ADAMS_BASHFORTH[len(last) - 1], last, strict=True))
        x = transfer(x, mean, now, then)
    np.testing.assert_allclose(run_table(scheduler.table(), mixture, start), x, atol=1e-10)


# ---- where the calls of PNDM fall --------------------------------------------------------------------------------


@over("calls", [*range(1, 20), 50])
def test_pndm_makes_as_many_calls_as_asked(calls):
    """As many starting steps, up to three, as leave a plain one: from 13 calls on all three."""
    scheduler = sd_ext.make_scheduler("pndm", SD)
    scheduler.set_timesteps(calls)
    stage = scheduler.levels.stage
    starts = 0 if stage is None else int(np.sum(stage == 3))
    assert len(scheduler.timesteps) == calls
    assert starts == (0 if calls < 5 else 1 if calls < 9 else 2 if calls < 13 else 3)
    if starts:
        assert stage.tolist() == [0, 1, 2, 3] * starts + [0] * (calls - 4 * starts)


def test_custom_timesteps_are_those_of_the_steps():
    scheduler = sd_ext.make_scheduler("pndm", SD)
    scheduler.set_timesteps(timesteps=[900, 700, 500, 300, 100])
    assert scheduler.timesteps.tolist() == [900, 800, 800, 700, 700, 600, 600, 500, 500, 400, 400, 300, 300, 100]
    scheduler.set_timesteps(timesteps=[900, 100])
    assert scheduler.timesteps.tolist() == [900, 500, 500, 100, 100]
    scheduler.set_timesteps(timesteps=[900])
    assert scheduler.timesteps.tolist() == [900]


@over("begin", range(14))
def test_pndm_from_any_call_on(begin, mixture):
    """A start inside a starting step walks to its end by first-order steps; the history begins after it."""
    scheduler = sd_ext.make_scheduler("pndm", SD)
    scheduler.set_timesteps(14)
    table = scheduler.table(begin)
    point = Mixture(np.ones(1), np.array([[0.7, -0.3]]), np.zeros(1))
    x = point.sample(3, table.levels.alpha[0], table.levels.sigma[0], seed=0)
    end = run_table(table, point, x)
    np.testing.assert_allclose(end, point.solve(x, table.levels), atol=1e-7)
    assert table.calls == 14 - begin


def test_pndm_at_zero_terminal_snr_begins_with_a_plain_step():
    for calls in (1, 2, 5, 6, 9, 14, 20):
        scheduler = sd_ext.make_scheduler(
            "pndm", SD, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(calls)
        levels = scheduler.levels
        assert levels.alpha[0] == 0 and len(levels) == calls + 1
        if levels.stage is not None:
            assert levels.stage.tolist()[:3] == [0, 0, 1]


def test_pndm_beyond_the_trained_range():
    """Where t stands still its middle says nothing; the middle in lambda is taken."""
    scheduler = sd_ext.make_scheduler("pndm karras", SD, sigma_max=200.0, sigma_min=0.001, set_alpha_to_one=True)
    scheduler.set_timesteps(25)
    table = scheduler.table()
    ratio = table.levels.ratio
    assert ratio[0] > 100 and np.all(np.diff(ratio) <= 0)


def test_pndm_holds_on_to_what_its_start_needs():
    scheduler = sd_ext.make_scheduler("pndm", SD)
    scheduler.set_timesteps(20)
    row = scheduler.table().rows[12, 0]
    assert np.flatnonzero(row[2:-1]).tolist() == [0, 4, 8, 12]


# ---- Diffusers -----------------------------------------------------------------------------------------------------


@over("steps", [4, 10, 20, 50])
def test_pndm_with_its_start(steps):
    """n steps of Diffusers' PNDM are n + 9 calls, which is what ours counts."""
    theirs, ours = both("PNDMScheduler", steps_offset=1)
    assert theirs.config["skip_prk_steps"] is ours.config["skip_prk_steps"] is False
    assert_close(sample(ours, steps + 9), sample(theirs, steps))


def test_ipndm_rows():
    """Diffusers' iPNDM has a schedule of its own; on that, a row is the same."""
    theirs = diffusers.IPNDMScheduler()
    theirs.set_timesteps(10)
    alpha, sigma = theirs.alphas.double().numpy(), theirs.betas.double().numpy()
    rows = plms(Levels(np.arange(11.0)[::-1], alpha, sigma)[1:]).rows
    eps = [torch.randn(1, 1, 1, 1, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    theirs.ets, theirs._step_index = eps[:3], 6
    x = torch.ones(1, 1, 1, 1)
    v = (eps[3] - theirs.betas[6] * x) / theirs.alphas[6]
    expected = theirs.step(v, theirs.timesteps[6], x).prev_sample
    row = rows[5, 0]
    got = row[0] * x + sum(w * e for w, e in zip(row[2:6], eps[::-1], strict=True))
    torch.testing.assert_close(got.float(), expected, atol=1e-5, rtol=1e-5)


def test_deviation_ipndm_follows_the_trained_schedule():
    """Diffusers' iPNDM ignores the model's betas: its timesteps lie in (0, 1], and alpha = 0 at the first."""
    theirs, ours = diffusers.IPNDMScheduler(), sd_ext.IPNDMScheduler(**SD)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    assert theirs.timesteps.max() <= 1 and float(theirs.alphas[0]) == 0
    assert ours.timesteps.tolist() == np.linspace(999, 0, 11).round()[:-1].astype(int).tolist()


def test_deviation_pndm_averages_eps_whatever_the_network_predicts():
    """Diffusers' PNDM averages v over steps and converts the mean at the newest alpha: wrong even on known data."""
    theirs, ours = both("PNDMScheduler", prediction_type="v_prediction", steps_offset=1, skip_prk_steps=True)
    ends = []
    for scheduler, calls in ((theirs, 19), (ours, 20)):
        scheduler.set_timesteps(calls)
        bars, x0 = ours.alphas_cumprod.double(), torch.full((1, 4, 8, 8), 0.5, dtype=torch.float64)
        alpha = bars[int(scheduler.timesteps[0])].sqrt()
        x = alpha * x0 + (1 - alpha**2).sqrt() * torch.ones_like(x0)
        for t in scheduler.timesteps:
            alpha = bars[int(t)].sqrt()
            eps = (x - alpha * x0) / (1 - alpha**2).sqrt()
            x = scheduler.step(alpha * eps - (1 - alpha**2).sqrt() * x0, t, x).prev_sample.double()
        ends.append(x)
    exact = bars[0].sqrt() * 0.5 + (1 - bars[0]).sqrt()
    torch.testing.assert_close(ends[1], exact.expand_as(ends[1]), atol=1e-5, rtol=0)
    assert (ends[0] - exact).abs().max() > 0.004


def released(t, i, order, *, corrected):
    """iPNDM-v's weights as its authors' code computes them at step i, and with its three slips corrected."""
    h, h1, h2, h3 = t[i + 1] - t[i], t[i] - t[i - 1], t[i - 1] - t[i - 2], t[i - 2] - t[i - 3]
    near, far = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
    part, ratio = h / (3 * (h + h1)), h * (h + h1) / (h1 * (h1 + h2))
    bend = (1 - part) * ratio / 2 if corrected else (1 - part * ratio) / 2
    sign, tail = (-1, h2 / h3) if corrected else (1, h1 / h2)
    third = (1 - part) / 2 + sign * (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    third *= ratio * (h + h1 + h2) / (h1 + h2 + h3) if order == 4 else 0.0
    return (
        1 + h / h1 / 2 + bend + third,
        -h / h1 / 2 - (1 + near) * bend - (1 + near + far) * third,
        near * bend + (near + far * (1 + h2 / h3)) * third,
        -far * tail * third,
    )


@over("order", [3, 4])
def test_ipndm_v_is_the_published_derivation(order, levels):
    table = exponential_adams(levels, order, "rho")
    for i in range(3, table.calls):
        whole = table.rows[i, 0, 2:-1].sum()
        ours = np.zeros(4)
        ours[:order] = table.rows[i, 0, 2:-1] / whole
        np.testing.assert_allclose(ours, released(levels.ratio, i, order, corrected=True), atol=1e-12, rtol=1e-12)


def test_deviation_ipndm_v_has_the_weights_of_its_derivation(levels):
    """The released iPNDM-v misplaces a bracket, a sign and a factor: on even steps its four weights are not
    Adams-Bashforth's, and on others they do not sum to 1.
    """
    even = np.arange(6.0, 0, -1)
    np.testing.assert_allclose(released(even, 3, 4, corrected=True), ADAMS_BASHFORTH[3], atol=1e-14)
    np.testing.assert_allclose(released(even, 3, 3, corrected=False)[:3], ADAMS_BASHFORTH[2], atol=1e-14)
    assert released(even, 3, 4, corrected=False)[0] == pytest.approx(57 / 24)
    assert abs(sum(released(levels.ratio, 4, 4, corrected=False)) - 1) > 0.01
    linear = np.array(released(levels.ratio, 4, 3, corrected=False)) @ (levels.ratio[4::-1][:4] - levels.ratio[4])
    assert abs(linear - (levels.ratio[5] - levels.ratio[4]) / 2) < 1e-12  # exact on lines,
    squares = np.array(released(levels.ratio, 4, 3, corrected=False)) @ (levels.ratio[4::-1][:4] - levels.ratio[4]) ** 2
    assert abs(squares - (levels.ratio[5] - levels.ratio[4]) ** 2 / 3) > 0.01  # and not on parabolas


# ---- options -------------------------------------------------------------------------------------------------------


@over(
    "name, option, value, allowed",
    [
        ("ipndm", "max_order", 5, r"\(1, 2, 3, 4\)"),
        ("ipndm-v", "max_order", 0, r"\(1, 2, 3, 4\)"),
        ("gradient estimation", "gamma", 4.5, "0 to 4"),
        ("gradient estimation", "gamma", float("nan"), "number"),
    ],
)
def test_bad_options(name, option, value, allowed):
    with pytest.raises(InputError, match=f"{option} must be .*{allowed}.*{value}"):
        sd_ext.make_scheduler(name, SD, **{option: value})


@over("order", [1, 2, 3, 4])
@over("name", ["ipndm", "ipndm-v"])
def test_max_order_bounds_the_history(name, order):
    scheduler = sd_ext.make_scheduler(name, SD, max_order=order)
    scheduler.set_timesteps(10)
    assert scheduler.table().history == order


def test_names():
    for name, skip in (("plms", True), ("pndm", False), ("PNDMScheduler", False)):
        assert sd_ext.make_scheduler(name, {**SD, "skip_prk_steps": not skip}).config["skip_prk_steps"] is skip
    assert sd_ext.PNDMScheduler.from_config(diffusers.PNDMScheduler(skip_prk_steps=True).config).config[
        "skip_prk_steps"
    ]
    for name in ("ipndm_v", "iPNDM-v"):
        assert sd_ext.make_scheduler(name).config["variable_step"]
    assert isinstance(sd_ext.make_scheduler("gradient_estimation"), sd_ext.GradientEstimationScheduler)


def test_pndm_table_needs_no_stash(schedule):
    scheduler = sd_ext.make_scheduler("pndm", SD)
    assert not pndm(scheduler._explicit_stages(schedule.at(np.linspace(900, 100, 9)))).rows[:, 1].any()
