"""The Diffusers scheduler interface of the samplers: starts, errors, the forward process. How tables are stepped
through is proven in test_engine.py, what the tables are in samplers/test_every_sampler.py.
"""

from __future__ import annotations

import copy
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten, tree_unflatten

import sd_ext
from sd_ext.board import BOARD
from sd_ext.errors import InputError

from .conftest import SD
from .over import NAMES, ONE_FIELD, WITNESSES, over
from .test_engine import network, noise, sample, seeds


@over("name", WITNESSES, full=ONE_FIELD)
def test_copies_threads_and_batches_of_real_samplers(name):
    """What test_engine.py proves of any table, with the samplers' own `step` and `set_timesteps` around it."""
    one = sd_ext.make_scheduler(name)

    def work(k: int) -> torch.Tensor:
        one.set_timesteps(5 + k)
        return sample(one, noise(), [torch.Generator().manual_seed(k + i) for i in range(3)])

    serial, results = [work(k) for k in range(8)], {}
    threads = [threading.Thread(target=lambda k=k: results.__setitem__(k, work(k))) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[k], serial[k]) for k in range(8))

    one.set_timesteps(6)
    x = noise()
    for t in one.timesteps[:3]:
        x = one.step(network(x), t, x, generator=seeds(3)).prev_sample
    ends = [sample(s, x, seeds(3), begin=3) for s in (copy.deepcopy(one), one)]
    assert torch.equal(*ends) and torch.isfinite(ends[0]).all() and one.step_index == 6
    one.set_timesteps(6)
    alone = sample(one, x[1:2], seeds(3)[1:2], begin=3)
    one.set_timesteps(6)
    torch.testing.assert_close(sample(one, x, seeds(3), begin=3)[1:2], alone, atol=1e-6, rtol=1e-6)


def test_duplicate_timesteps_are_told_apart_by_position():
    """Heun announces inner timesteps twice; a start at the second of them is the second (#5687, #4122)."""
    scheduler = sd_ext.make_scheduler("heun")
    scheduler.set_timesteps(7)
    values = scheduler.timesteps.tolist()
    assert values[1] == values[2]
    x = noise()
    scheduler.step(network(x), scheduler.timesteps[2], x)
    assert scheduler.step_index == 3


def test_a_start_by_value_is_looked_up():
    scheduler = sd_ext.make_scheduler("ddim")
    scheduler.set_timesteps(10)
    x = noise()
    scheduler.step(network(x), int(scheduler.timesteps[4]), x)
    assert scheduler.step_index == 5


def test_a_start_after_the_last_call_makes_none():
    """As of a refiner that is handed a finished picture."""
    scheduler = sd_ext.make_scheduler("dpm++ 2m", SD)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(5)
    with pytest.raises(InputError, match="5 calls are made"):
        scheduler.step(torch.zeros(1, 1), scheduler.timesteps[0], torch.zeros(1, 1))


def test_an_output_is_one_of_diffusers():
    """By name, key and place, as a tuple, in a pickle and as a tree, though it is filled by hand."""
    scheduler = sd_ext.make_scheduler("euler", SD)
    scheduler.set_timesteps(5)
    x, m = torch.randn(2, 1, 4, 2, 2).unbind()
    output = scheduler.step(m, scheduler.timesteps[0], x)
    theirs = SchedulerOutput(prev_sample=output.prev_sample)
    assert isinstance(output, SchedulerOutput) and [*output] == [*theirs] and repr(output)[9:] == repr(theirs)[14:]
    assert output[0] is output["prev_sample"] is output.to_tuple()[0] is output.prev_sample
    again = pickle.loads(pickle.dumps(output))
    leaves, tree = tree_flatten(output)
    assert len(leaves) == 1 and torch.equal(tree_unflatten(leaves, tree)[0], output[0])
    for each in (again, copy.copy(output), copy.deepcopy(output)):
        assert torch.equal(each[0], output[0])
        assert torch.equal(each.pred_original_sample, output.pred_original_sample)


def test_epsilon_at_zero_terminal_snr_is_refused():
    scheduler = sd_ext.make_scheduler("ddim", SD, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match="zero terminal SNR"):
        scheduler.set_timesteps(5)


def test_clipping_bounds_the_prediction():
    scheduler = sd_ext.make_scheduler("dpm++ 2m", SD, clip_sample=True, clip_sample_range=0.25)
    scheduler.set_timesteps(5)
    x = noise()
    for t in scheduler.timesteps:
        out = scheduler.step(3 * x, t, x)
        assert out.pred_original_sample.abs().max() <= 0.25
        x = out.prev_sample
    assert x.abs().max() <= 0.25


@over("timesteps", [torch.tensor([0, 500, 999]), torch.tensor([0.5, 500.25, 998.75]), torch.tensor([7])])
def test_add_noise_and_velocity_before_set_timesteps(timesteps, schedule):
    scheduler = sd_ext.make_scheduler("dpm++ 2m")
    x0, eps = noise(), noise().flip(0)
    levels = schedule.at(timesteps.double().numpy())
    alpha, sigma = (torch.from_numpy(v).float().reshape(-1, 1, 1, 1) for v in (levels.alpha, levels.sigma))
    torch.testing.assert_close(scheduler.add_noise(x0, eps, timesteps), alpha * x0 + sigma * eps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        scheduler.get_velocity(x0, eps, timesteps), alpha * eps - sigma * x0, atol=1e-5, rtol=1e-5
    )


BAD_TIMES = [
    (5000, "within 0 and 999, got .5000."),
    (torch.tensor([-1]), "within 0 and 999"),
    ([3.0, math.nan, 5.0], "within 0 and 999"),
    ([], "1 or 3 .*, got 0"),
    ([1, 2], "1 or 3 .*, got 2"),
    ("late", "must be numbers, got 'late'"),
]


@over("timesteps, says", BAD_TIMES)
def test_noise_at_no_timestep_of_the_models_is_refused(timesteps, says):
    """And numbers stand for tensors."""
    scheduler = sd_ext.make_scheduler("dpm++ 2m")
    x = noise()
    for ask in (scheduler.add_noise, scheduler.get_velocity):
        with pytest.raises(InputError, match=says):
            ask(x, x, timesteps)
    assert torch.equal(scheduler.add_noise(x, x, [3, 5, 7]), scheduler.add_noise(x, x, torch.tensor([3, 5, 7])))
    assert torch.equal(scheduler.add_noise(x, x, 7), scheduler.add_noise(x, x, torch.tensor([7])))


def test_a_start_beyond_the_trained_noise_is_said(caplog):
    for name, options in (
        ("euler karras", {}),
        ("euler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    ):
        sd_ext.make_scheduler(name, {**SD, "prediction_type": "v_prediction"}, **options).set_timesteps(5)
    assert not caplog.records
    scheduler = sd_ext.make_scheduler("euler karras", SD, sigma_max=100.0)
    for _ in range(2):
        scheduler.set_timesteps(5)
    assert [record.message.count("sigma 100, beyond the 14.61") for record in caplog.records] == [1]


BAD_RUNS = [
    ({}, "exactly one"),
    ({"timesteps": [5], "sigmas": [3.0]}, "exactly one"),
    ({"num_inference_steps": 5, "timesteps": [3]}, "num_inference_steps or timesteps, not both"),
    ({"num_inference_steps": 2, "sigmas": [9.0, 3.0, 1.0, 0.0]}, r"sigmas must be 2 numbers .*, got 3"),
    ({"num_inference_steps": 0}, "1 to 1000"),
    ({"num_inference_steps": 1001}, "1 to 1000"),
    ({"num_inference_steps": 2.5}, "whole number"),
    ({"timesteps": []}, "non-empty"),
    ({"timesteps": [10, 500]}, "fall"),
    ({"timesteps": [500, 500]}, "fall"),
    ({"timesteps": [1000, 3]}, "within 0 and 999"),
    ({"timesteps": "many"}, "list of numbers"),
    ({"sigmas": [3.0, -1.0]}, "positive"),
    ({"sigmas": [3.0, float("nan")]}, "finite"),
]


@over("arguments, says", BAD_RUNS)
def test_bad_runs_are_refused_and_the_old_one_stays(arguments, says):
    scheduler = sd_ext.make_scheduler("dpm++ 2m")
    scheduler.set_timesteps(4)
    before = scheduler.timesteps.tolist()
    with pytest.raises(InputError, match=says):
        scheduler.set_timesteps(**arguments)
    assert scheduler.timesteps.tolist() == before
    assert torch.isfinite(sample(scheduler, noise())).all()


def test_bad_steps_are_refused_and_the_run_stays_where_it_was():
    scheduler = sd_ext.make_scheduler("euler a")
    x = noise()
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="differ in shape"):
        scheduler.step(x[:, :3], scheduler.timesteps[1], x)
    assert scheduler.step_index is None, "a step that was refused does not say where the run starts"
    for output, latent, says in (
        (SchedulerOutput(x), x, "model_output must be a tensor, got SchedulerOutput"),
        (UNet2DConditionOutput(x), x, "got UNet2DConditionOutput; give its .sample"),
        (x, None, "sample must be a tensor, got NoneType"),
        (x, x.long(), "sample must be floating point, got torch.int64"),
    ):
        with pytest.raises(InputError, match=says):
            scheduler.step(output, scheduler.timesteps[0], latent)
    with pytest.raises(InputError, match="a list of 3"):
        scheduler.step(x, scheduler.timesteps[0], x, generator=seeds(2))
    with pytest.raises(InputError, match=r"variance_noise must be \(3, 4, 8, 8\)"):
        scheduler.step(x, scheduler.timesteps[0], x, variance_noise=x[:1])
    with pytest.raises(InputError, match="begin_index"):
        scheduler.set_begin_index(5)
    with pytest.raises(InputError, match="calls are made"):
        scheduler.set_begin_index(4)
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_begin_index(0)
    assert torch.isfinite(sample(scheduler, x, seeds(3))).all()


@over(
    "name, option, value",
    [
        ("dpm++ 2m", "solver_order", 4),
        ("dpm++ 2m", "algorithm_type", "dpm"),
        ("dpm++ 2m", "prediction_type", "noise"),
        ("dpm++ 2m", "final_sigmas_type", "one"),
        ("ddpm", "variance_type", "big"),
        ("deis", "variable", "sigma"),
    ],
)
def test_bad_options_are_refused(name, option, value):
    with pytest.raises(InputError, match=option):
        sd_ext.make_scheduler(name, SD, **{option: value})


def test_explicit_sigmas_with_and_without_the_final_zero():
    ours = [sd_ext.make_scheduler("euler") for _ in range(2)]
    for scheduler, sigmas in zip(ours, ([14.0, 5.0, 1.0, 0.0], [14.0, 5.0, 1.0]), strict=True):
        scheduler.set_timesteps(sigmas=sigmas)
        assert len(scheduler.timesteps) == 3
    torch.testing.assert_close(ours[0].sigmas, ours[1].sigmas)
    np.testing.assert_allclose(ours[0].sigmas.numpy(), [14, 5, 1, 0], rtol=1e-6)


def test_before_a_run_timesteps_and_sigmas_are_the_trained_ones(schedule):
    scheduler = sd_ext.make_scheduler("ddim")
    assert scheduler.timesteps.tolist() == [*range(999, -1, -1)]
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*schedule.at(np.arange(999.0, -1, -1)).ratio, 0], rtol=1e-6)
    assert scheduler.num_inference_steps is scheduler.begin_index is scheduler.step_index is None
    assert len(scheduler) == 1000


def any_run(examples: int, most: int):
    return lambda test: settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=False
    )(
        given(
            name=st.sampled_from(NAMES),
            calls=st.integers(1, most),
            grid=st.sampled_from([None, *(grid.name for grid in sd_ext.list_grids())]),
            prediction=st.sampled_from(["epsilon", "sample", "v_prediction", "flow_prediction"]),
            shape=st.sampled_from([(4, 8, 8), (3, 4, 6), (4, 2, 5, 3), (7,)]),
            batch=st.integers(1, 5),
            dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
            begin=st.floats(0, 0.999),
        )(test)
    )


def is_right(name, calls, grid, prediction, shape, batch, dtype, begin):
    """Finite, repeatable and in its dtype."""
    scheduler = sd_ext.make_scheduler(name, SD, grid=grid, prediction_type=prediction)
    scheduler.set_timesteps(calls)
    first = int(begin * calls)
    if scheduler.levels.alpha[first] == 0 and prediction == "epsilon":
        first = min(first + 1, calls - 1)  # refused: see test_epsilon_at_zero_terminal_snr_is_refused
    results = []
    for _ in range(2):
        scheduler.set_timesteps(calls)
        scheduler.set_begin_index(first)
        x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        generators = [torch.Generator().manual_seed(3 + i) for i in range(batch)]
        for t in scheduler.timesteps[first:]:
            BOARD.write(t, torch.sin(x), alone=True)  # for tables of two fields
            x = scheduler.step(torch.tanh(x), t, x, generator=generators).prev_sample
        assert x.dtype == dtype and x.shape == (batch, *shape)
        assert torch.isfinite(x.float()).all()
        results.append(x)
    assert torch.equal(*results)


@any_run(examples=50, most=40)
def test_any_run(**run):
    is_right(**run)


@pytest.mark.slow
@any_run(examples=1000, most=200)
def test_any_run_at_length(**run):
    is_right(**run)
