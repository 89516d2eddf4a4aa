"""Laws of every sampler's table, in numpy: counts, starts, invariants, history, what is listed of it.

Order is proven in test_orders.py, moments in test_stochastic.py. A table checks itself at birth (test_table.py): where
one is made here, a known picture is found, and noise is as it must be, at every call.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sd_ext
from sd_ext.schedulers.table import Table

from ..conftest import SD
from ..mixture import Mixture, run_table
from ..over import INVERSE, NAMES, over
from ..test_engine import noise, sample, seeds

OFFSET = {**SD, "steps_offset": 1}
"""As Stable Diffusion is configured: "leading" ends at t = 1."""
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
MODELS = {
    "stable diffusion": SD,
    "cosine betas": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal snr": {**ZERO_SNR, "prediction_type": "v_prediction"},
    "flow matching": {"prediction_type": "flow_prediction"},
}
AUTO = ("auto", "auto low guidance")
"""Place their own grid, in sigma."""
CONSISTENCY = ("lcm", "tcd", "tdd")

POINT = Mixture(np.ones(1), np.array([[0.7, -0.3]]), np.zeros(1))


def made(name: str, calls: int, config=SD, **options):
    scheduler = sd_ext.make_scheduler(name, config, **options)
    scheduler.set_timesteps(calls)
    return scheduler


@over("model", MODELS)
@over("name", NAMES)
@over("counts", [(1, 2, 7)], full=[(1, 2, 3, 4, 6, 12, 20)])
def test_a_run_is_as_many_calls_as_asked_and_finds_a_known_picture(counts, name, model):
    """On every kind of model and from every start."""
    scheduler = sd_ext.make_scheduler(name, MODELS[model])
    for calls in counts:
        scheduler.set_timesteps(calls)
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == calls and scheduler.order == 1
        own = (*CONSISTENCY, *AUTO, *INVERSE)
        if model == "zero terminal snr" and scheduler.config["grid"] is None and name not in own:
            assert scheduler.levels.alpha[0] == 0
        for begin in {0, 1 % calls, calls // 2, calls - 1}:
            table = scheduler.table(begin)
            assert table.calls == calls - begin
            np.testing.assert_array_equal(table.levels.t, scheduler.levels.t[begin:])
        x = POINT.sample(3, table.levels.alpha[0], table.levels.sigma[0], seed=0)
        off = run_table(table, POINT, x, seed=1) - table.levels.alpha[-1] * POINT.means
        assert np.abs(off).max() < 1e-5 + 4 * table.levels.sigma[-1]  # PLMS ends at t = 0, all others clean


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    calls=st.integers(1, 60),
    grid=st.sampled_from(["linspace", "leading", "trailing", "karras", "beta", "ays", "lambda_uniform"]),
    prediction=st.sampled_from(["epsilon", "sample", "v_prediction"]),
    data=st.data(),
)
def test_tables_hold_their_invariants_from_any_start(name, calls, grid, prediction, data):
    scheduler = made(name, calls, grid=grid, prediction_type=prediction)
    begin = data.draw(st.integers(0, calls - 1))
    table = scheduler.table(begin)
    assert table.calls == calls - begin
    x = POINT.sample(3, table.levels.alpha[0], table.levels.sigma[0], seed=0)
    end = run_table(table, POINT, x, seed=1)
    if table.levels.sigma[-1] == 0 and table.preserves != "nothing":
        np.testing.assert_allclose(end, POINT.means.repeat(3, 0), atol=1e-7)
    assert np.isfinite(end).all()


@over(
    "name, grid, calls",
    [("auto low guidance", "normal", 3), ("unipc 3 eps", "normal", 3), ("lms", "linear_quadratic", 6)],
)
@over("model", ["zero terminal snr", "flow matching"])
def test_rounding_is_not_taken_for_a_wrong_table(name, grid, calls, model):
    """Of high orders on eps from near pure noise."""
    assert made(name, calls, MODELS[model], grid=grid).table().calls == calls


@over("name", NAMES)
def test_a_half_way_start_is_a_run_of_its_own(name):
    """Its table is that of a fresh run announced with the levels that remain: above t = 0, since a run that is told to
    go there ends clean.
    """
    scheduler = made(name, 12, OFFSET)
    if scheduler.levels.stage is None and name not in (*INVERSE, *AUTO):  # auto: test_auto.py
        fresh = sd_ext.make_scheduler(name, OFFSET)
        fresh.set_timesteps(timesteps=scheduler.levels.t[5:-1])
        np.testing.assert_allclose(scheduler.table(5).rows, fresh.table().rows, atol=1e-9)


@over("name", NAMES)
def test_declared_history_is_needed_and_enough(name, mixture):
    table = made(name, 16).table()
    x = mixture.sample(4, table.levels.alpha[0], table.levels.sigma[0], seed=1)
    whole = run_table(table, mixture, x, seed=2)
    np.testing.assert_array_equal(run_table(table, mixture, x, seed=2, history=table.history), whole)
    if table.history > 1:
        assert np.isnan(run_table(table, mixture, x, seed=2, history=table.history - 1)).any()


def test_van_der_houwens_method_keeps_two_predictions():
    """a31 = b1 in Wray's form, so that the last call of a step does not weigh the first; on no machine's rounding."""
    for calls in range(3, 30):
        assert made("houwen-wray 3s", calls).table().history == 2


@over("name", NAMES)
def test_json_round_trip_is_exact(name):
    table = made(name, 9).table()
    again = Table.from_json(table.to_json())
    np.testing.assert_array_equal(again.rows, table.rows)
    np.testing.assert_array_equal(again.levels.sigma, table.levels.sigma)
    assert (again.basis, again.preserves) == (table.basis, table.preserves)


@over("name", NAMES)
def test_float32_equals_float64_to_rounding(name):
    """No table has weights that cancel so far that float32 loses its digits."""
    results = []
    for dtype in (torch.float32, torch.float64):
        scheduler = made(name, 12, {})
        results.append(sample(scheduler, noise(1, dtype), seeds(1)))
        assert results[-1].dtype == dtype
    torch.testing.assert_close(results[0].double(), results[1], atol=2e-4, rtol=2e-4)


@over("name", NAMES)
@over("spacing", ["trailing"], full=["linspace", "trailing", "leading"])
@over("calls", [2, 6], full=[2, 3, 4, 6, 12])
def test_the_cosine_schedule_starts_in_noise(calls, spacing, name):
    """Its alpha at the start is 5e-5: no table may lose its digits there, nor a float32 run."""
    scheduler = made(name, calls, MODELS["cosine betas"], timestep_spacing=spacing)
    assert torch.isfinite(sample(scheduler, noise(1), seeds(1))).all()


@over("name", NAMES)
def test_what_is_listed_of_a_sampler_is_what_is_made(name):
    (info,) = (info for info in sd_ext.list_samplers() if info.name == name)
    scheduler = made(name, 8)
    assert type(scheduler) is info.cls
    assert scheduler.table().stochastic == info.stochastic
    assert info.source


def test_every_law_is_asked_of_every_sampler():
    assert len(NAMES) == len(set(NAMES)) >= 68
    with pytest.raises(AssertionError, match=r"1 of 68 cases fail:\n  name=heun: wrong"):
        fails_for_heun()


@over("name", NAMES[:68])
def fails_for_heun(name):
    assert name != "heun", "wrong"
