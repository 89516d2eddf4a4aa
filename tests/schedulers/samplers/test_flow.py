"""Flow matching: parity with Diffusers' schedulers, and the same classes on a variance-preserving model."""

from __future__ import annotations

import itertools
import threading
import warnings

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.processes.flow import Flow
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.samplers.flow import flow_heun
from sd_ext.schedulers.schedule import ZERO

from ..mixture import run_table
from ..over import over
from ..test_parity import assert_close, network

EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"


def both(name, **config):
    return getattr(diffusers, name)(**config), getattr(sd_ext, name)(**config)


def run(scheduler, **set_up):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(**set_up)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x), t, x, generator=generator, return_dict=False)[0]
    return x


FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
CONFIGS = [
    {},
    {"shift": 3.0},
    {"shift": 0.5, "num_train_timesteps": 500},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"shift": 2.0, "use_beta_sigmas": True},
    {"shift": 3.0, "shift_terminal": 0.1},
    {"stochastic_sampling": True},
]


@over("steps", [1, 2, 5, 28])
@over("config", CONFIGS)
def test_euler_is_diffusers(config, steps):
    theirs, ours = both(EULER, **config)
    if steps == 1 and config.get("shift_terminal"):
        return  # stretching a single sigma of 1 is 0 / 0, in Diffusers NaN
    a, b = run(ours, num_inference_steps=steps), run(theirs, num_inference_steps=steps)
    torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), atol=1e-2, rtol=1e-5)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, atol=1e-6, rtol=1e-5)
    assert_close(a, b)


@over("kind", ["exponential", "linear"])
@over("terminal", [None, 0.02])
def test_dynamic_shifting_is_diffusers(kind, terminal):
    """As Flux calls it: its own sigmas, and mu from the picture's size."""
    theirs, ours = both(EULER, **FLUX, time_shift_type=kind, shift_terminal=terminal)
    for set_up in ({"sigmas": np.linspace(1.0, 1 / 8, 8), "mu": 0.83}, {"num_inference_steps": 8, "mu": 1.15}):
        assert_close(run(ours, **set_up), run(theirs, **set_up))
        torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), atol=1e-2, rtol=1e-5)


@over(
    "set_up",
    [
        {"sigmas": [1.0, 0.6, 0.2]},
        {"timesteps": [1000.0, 700.0, 100.0]},
        {"sigmas": [1.0, 0.6, 0.2], "timesteps": [999.0, 400.0, 50.0]},
        {"sigmas": [0.9, 0.3], "num_inference_steps": 2},
    ],
)
def test_explicit_schedules_are_diffusers(set_up):
    """Also what the network is told apart from the sigma that is stepped."""
    theirs, ours = both(EULER, shift=2.0)
    assert_close(run(ours, **set_up), run(theirs, **set_up))
    torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), atol=1e-2, rtol=1e-5)


@over("shift", [1.0, 3.0])
@over("steps", [1, 2, 5, 20])
def test_heun_is_diffusers(steps, shift):
    """n steps of Diffusers' Heun are 2n - 1 calls, which is what ours counts."""
    theirs, ours = both(HEUN, shift=shift)
    a, b = run(ours, num_inference_steps=2 * steps - 1), run(theirs, num_inference_steps=steps)
    torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps[: 2 * steps - 1], atol=1e-2, rtol=1e-5)
    assert_close(a, b)


def test_scale_noise_is_diffusers():
    theirs, ours = both(EULER, shift=3.0)
    x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    for i in (0, 3, 9):
        for announced in (False, True):
            results = []
            for scheduler in (theirs, ours):
                scheduler.set_timesteps(10)
                if announced:
                    scheduler.set_begin_index(i)
                results.append(scheduler.scale_noise(x, scheduler.timesteps[i : i + 1].repeat(2), noise))
            assert_close(results[1], results[0], 1e-5)
    fresh = sd_ext.FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(fresh.scale_noise(x, torch.tensor([250.0]), noise), 0.75 * x + 0.25 * noise)
    with pytest.raises(InputError, match="not one of this run's"):
        ours.set_timesteps(10)
        ours.scale_noise(x, torch.tensor([1.23]), noise)


def flow_levels(n):
    flow = Flow(1000)
    return flow.at(1000 * np.linspace(1, 1 / n, n)).then(ZERO)


@over("name, order", [("flow euler", 1), ("flow heun", 2)])
def test_order_on_the_flow_path_from_pure_noise(name, order, mixture):
    """From alpha = 0 itself, against a very fine run; on the variance-preserving path see test_orders."""
    flow, scheduler = Flow(1000), sd_ext.make_scheduler(name)
    x = np.random.default_rng(0).standard_normal((24, 4))

    def end(n):
        levels = flow.at(1000 * np.linspace(1, 0.2, n + 1))
        return run_table(scheduler._table(scheduler._explicit_stages(levels), 0.0), mixture, x)

    exact, counts = end(4000), (40, 80, 160)
    errors = [np.sqrt(np.mean((end(n) - exact) ** 2)) for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.25)


def test_euler_is_the_first_order_step_on_both_kinds_of_model(schedule):
    for config in ({}, {"prediction_type": "epsilon"}):
        scheduler = sd_ext.make_scheduler("flow euler", **config)
        scheduler.set_timesteps(9)
        np.testing.assert_array_equal(scheduler.table().rows, first_order(scheduler.levels).rows)


def test_heun_is_the_mean_of_two_velocities(mixture):
    """Against x' = x + (sigma' - sigma) (v + v') / 2, restated."""
    levels = flow_levels(6)
    scheduler = sd_ext.FlowMatchHeunDiscreteScheduler()
    staged = scheduler._explicit_stages(levels)
    x = np.random.default_rng(0).standard_normal((5, 4))
    y = x
    for s, below in itertools.pairwise(levels.sigma):
        v = (y - mixture.x0(y, 1 - s, s)) / s
        new = y + (below - s) * v
        if below:
            new = y + (below - s) / 2 * (v + (new - mixture.x0(new, 1 - below, below)) / below)
        y = new
    np.testing.assert_allclose(run_table(flow_heun(staged), mixture, x), y, atol=1e-10)


def test_models_of_the_other_kind():
    """An SD config makes them plain samplers: SD's grid, sigma / alpha for sigmas=, no mu."""
    for name in ("flow euler", "flow heun"):
        scheduler = sd_ext.make_scheduler(name, diffusers.DDIMScheduler().config)
        assert scheduler.config["prediction_type"] == "epsilon"
        scheduler.set_timesteps(sigmas=[10.0, 3.0, 1.0])
        np.testing.assert_allclose(scheduler.sigmas[0], 10.0, rtol=1e-6)
        with pytest.raises(InputError, match="mu is for flow models"):
            scheduler.set_timesteps(5, mu=1.0)
    config = diffusers.DDIMScheduler(timestep_spacing="trailing").config
    euler, plain = (sd_ext.make_scheduler(name, config) for name in ("flow euler", "ddim"))
    for scheduler in (euler, plain):
        scheduler.set_timesteps(7)
    np.testing.assert_array_equal(euler.table().rows, plain.table().rows)


@over("cls", [sd_ext.FlowMatchEulerDiscreteScheduler, sd_ext.FlowMatchHeunDiscreteScheduler])
def test_from_diffusers_configs(cls):
    for theirs in (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), diffusers.FlowMatchHeunDiscreteScheduler()):
        ours = cls.from_config(theirs.config)
        assert ours.config["prediction_type"] == "flow_prediction"
        assert ours.config["shift"] == theirs.config["shift"]
        for calls in (1, 2, 3, 8):
            ours.set_timesteps(calls)
            assert [ours.table(begin).calls for begin in range(calls)] == [*range(calls, 0, -1)]


def test_a_flow_shift_of_other_schedulers_is_a_shift():
    """UniPC and DPM-Solver call it flow_shift; shifts multiply."""
    a = sd_ext.FlowMatchEulerDiscreteScheduler(flow_shift=3.0)
    b = sd_ext.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for scheduler in (a, b):
        scheduler.set_timesteps(6)
    np.testing.assert_array_equal(a.timesteps, b.timesteps)


def test_named_grids_are_shifted():
    scheduler = sd_ext.make_scheduler("flow euler", shift=3.0, grid="linspace")
    scheduler.set_timesteps(4)
    s = np.array([1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(scheduler.sigmas[:-1], 3 * s / (1 + 2 * s), rtol=1e-6)


def test_threads_do_not_share_mu():
    scheduler = sd_ext.FlowMatchEulerDiscreteScheduler(**FLUX)
    results = {}

    def work(mu):
        scheduler.set_timesteps(6, mu=mu)
        results[mu] = scheduler.timesteps.tolist()

    threads = [threading.Thread(target=work, args=(mu,)) for mu in (0.5, 1.15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0.5] != results[1.15]
    with pytest.raises(InputError, match="needs mu"):
        scheduler.set_timesteps(6)


@over(
    "arguments, says",
    [
        ({}, "exactly one"),
        ({"num_inference_steps": 0}, "1 to 1000"),
        ({"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "must be 3 numbers"),
        ({"sigmas": [1.0, 0.5], "timesteps": [900.0]}, "do not fit"),
        ({"sigmas": [0.5, 1.0]}, "fall"),
        ({"sigmas": [1.5, 0.5]}, "at most at 1"),
        ({"sigmas": [0.5, -0.5]}, "above 0"),
        ({"timesteps": [1500.0]}, "at most at 1"),
        ({"sigmas": [float("nan")]}, "finite"),
    ],
)
def test_bad_runs_are_refused_and_the_old_one_stays(arguments, says):
    scheduler = sd_ext.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    before = scheduler.timesteps.tolist()
    with pytest.raises(InputError, match=says):
        scheduler.set_timesteps(**arguments)
    assert scheduler.timesteps.tolist() == before


@over(
    "option, value",
    [("time_shift_type", "cubic"), ("shift", 0.0), ("shift_terminal", 1.5)],
)
def test_bad_options_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} must be"):
        sd_ext.make_scheduler("flow euler", **{option: value})


def test_deviation_a_last_sigma_of_zero_makes_no_call():
    """Diffusers appends its own zero to one that is there, and steps from 0 to 0 with one more call."""
    theirs, ours = both(EULER)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0])
    assert (len(theirs.timesteps), len(ours.timesteps)) == (3, 2)
