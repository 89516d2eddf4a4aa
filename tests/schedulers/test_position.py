"""Which call a step is for: the next one, the last one again, or another, by the timestep it is handed."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.board import BOARD
from sd_ext.errors import InputError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.position import Places
from sd_ext.schedulers.samplers.first_order import first_order

from .conftest import SD
from .over import INVERSE, NAMES, WITNESSES, over
from .test_compile import NoReading
from .test_engine import network, noise

NOISES = torch.randn(40, *noise().shape, generator=torch.Generator().manual_seed(5))
DDIM = {**SD, "clip_sample": False}


def step(scheduler, timestep, x, at):
    """A step with made-up network outputs and with the noise of its place, so that it depends on nothing else."""
    BOARD.write(timestep, torch.cat([network(0.9 * x), network(x)]))
    return scheduler.step(network(x), timestep, x, variance_noise=NOISES[at % 40]).prev_sample


def run(scheduler, begin=0, told=lambda t: t, peeks=0, x=None):
    """From call `begin` to the end, looking so many times before each step."""
    x = noise() if x is None else x
    for i, t in enumerate(scheduler.timesteps[begin:], begin):
        for k in range(peeks):
            step(scheduler, told(t), 0.5 * x + k, i)
        x = step(scheduler, told(t), x, i)
    return x


@over("name", WITNESSES, full=NAMES)
def test_a_look_before_the_step_changes_nothing(name):
    scheduler = sd_ext.make_scheduler(name, SD)
    scheduler.set_timesteps(9)
    plain = run(scheduler)
    for peeks in (1, 2):
        scheduler.set_timesteps(9)
        assert torch.equal(run(scheduler, peeks=peeks), plain)


@over("told", [float, lambda t: t.clone(), lambda t: t.expand(3), lambda t: t.half(), lambda t: np.float64(t)])
def test_numbers_and_foreign_tensors_are_told_by_their_value(told):
    """All the same, where no timestep comes twice: also those that half precision has rounded."""
    scheduler = sd_ext.make_scheduler("dpm++ 3m", SD)
    results = []
    for how, peeks in ((lambda t: t, 0), (told, 0), (told, 2)):
        scheduler.set_timesteps(12)
        results.append(run(scheduler, told=how, peeks=peeks))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@over("name", WITNESSES, full=NAMES)
@over("announced", [True, False])
def test_another_timestep_begins_the_run_there(name, announced):
    """Back, as in resampling, and ahead: what comes out is the run that begins there."""
    scheduler = sd_ext.make_scheduler(name, SD)
    for end, begin in ((5, 2), (2, 6), (9, 0)):
        scheduler.set_timesteps(9)
        expected = run(scheduler, begin)
        scheduler.set_timesteps(9)
        if announced:
            scheduler.set_begin_index(0)
        x = noise()
        for i, t in enumerate(scheduler.timesteps[:end]):
            x = step(scheduler, t, x, i)
        assert torch.equal(run(scheduler, begin), expected), (end, begin)


@over("name", WITNESSES, full=[name for name in NAMES if "t-ab" not in name and name not in INVERSE])
def test_before_any_set_timesteps_all_trained_timesteps_are_run(name):
    config = {**SD, "num_train_timesteps": 20, "prediction_type": "epsilon"}
    options = {"original_inference_steps": 10} if name in ("lcm", "tcd", "tdd") else {}
    scheduler, announced = (sd_ext.make_scheduler(name, config, **options) for _ in range(2))
    announced.set_timesteps(timesteps=range(19, -1, -1))
    assert torch.equal(scheduler.timesteps, announced.timesteps) and torch.equal(scheduler.sigmas, announced.sigmas)
    assert scheduler.num_inference_steps is scheduler.begin_index is scheduler.step_index is None
    assert torch.equal(run(scheduler), run(announced))
    scheduler.set_timesteps(3)
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 3


@over("name", WITNESSES, full=NAMES)
@over("t", [1000 - 1, 990, 333, 2, 0])
def test_a_timestep_between_the_runs_begins_at_its_own_level(name, t):
    """On data that is one point any right run ends there; LCM's consistency function is x at t = 0."""
    scheduler = sd_ext.make_scheduler(name, SD, prediction_type="epsilon")
    scheduler.set_timesteps(9)
    if t in scheduler.timesteps:
        return
    after = next((i for i, each in enumerate(scheduler.timesteps) if each < t), 9)
    levels = [scheduler.schedule.at([float(t)]), *(scheduler.levels[i : i + 1] for i in range(after, 9))]
    for _ in range(2):
        x = float(levels[0].alpha[0]) + float(levels[0].sigma[0]) * noise().double()
        for now, level in zip([t, *scheduler.timesteps[after:]], levels, strict=True):
            m = (x - float(level.alpha[0])) / float(level.sigma[0])
            for looks in (now == t, False):
                BOARD.write(now, m, alone=True)
                out = scheduler.step(m + looks, now, x, variance_noise=NOISES[0].double())
            x = out.prev_sample
            torch.testing.assert_close(out.pred_original_sample, torch.ones_like(x), atol=1e-5, rtol=0)
        off = (0.3 if t == 0 else 5e-4) if name == "lcm" else 1e-5 + 6 * float(scheduler.levels.sigma[-1])
        torch.testing.assert_close(x, torch.ones_like(x), atol=off, rtol=0)


def test_a_ddim_step_between_goes_to_the_next_timestep_below(schedule: NoiseSchedule):
    scheduler = sd_ext.DDIMScheduler(**DDIM)
    scheduler.set_timesteps(10)
    x = noise()
    got = scheduler.step(network(x), 333, x).prev_sample
    a, b = schedule.at([333.0, 300.0]).alpha, schedule.at([333.0, 300.0]).sigma
    x0 = (x - b[0] * network(x)) / a[0]
    torch.testing.assert_close(got, (a[1] * x0 + b[1] * network(x)).float(), atol=1e-5, rtol=1e-5)
    assert scheduler.step_index == 6 and scheduler.timesteps[6] == 300


def test_eta_is_each_steps_own(schedule: NoiseSchedule):
    """As in Diffusers: what is given with a step holds for it, a look without noise before a step with it included."""
    scheduler = sd_ext.DDIMScheduler(**DDIM)
    scheduler.set_timesteps(6)
    x, etas = noise().double(), [0.0, 0.5, 0.5, 1.0, 0.0, 0.3]
    for i, (t, eta) in enumerate(zip(scheduler.timesteps, etas, strict=True)):
        expected = first_order(scheduler.levels[i : i + 2], eta).rows[0, 0]
        scheduler.step(network(x), t, x, eta=0.9, variance_noise=NOISES[0].double())
        got = scheduler.step(network(x), t, x, eta=eta, variance_noise=NOISES[i].double()).prev_sample
        x0 = (x - scheduler.levels.sigma[i] * network(x)) / scheduler.levels.alpha[i]
        want = expected[0] * x + expected[2] * x0 + expected[3] * NOISES[i].double()
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
        x = got


def test_a_second_look_draws_the_same_increment_of_a_brownian_path():
    pytest.importorskip("torchsde")
    results = []
    for peeks in (0, 2):
        scheduler = sd_ext.make_scheduler("dpm++ 2m sde", SD, noise_type="brownian")
        scheduler.set_timesteps(5)
        x, generator = noise(), torch.Generator().manual_seed(0)
        for t in scheduler.timesteps:
            for _ in range(peeks):
                scheduler.step(network(x), t, x, generator=generator)
            x = scheduler.step(network(x), t, x, generator=generator).prev_sample
        results.append(x)
    assert torch.equal(*results)


def test_timesteps_that_come_twice_are_told_apart_by_their_place_in_memory():
    scheduler = sd_ext.make_scheduler("heun", SD)
    scheduler.set_timesteps(7)
    values = scheduler.timesteps.tolist()
    twice = [i for i, (one, other) in enumerate(pairwise(values)) if one == other]
    assert twice
    for i in twice:
        for place in (i, i + 1, i + 1, i):
            step(scheduler, scheduler.timesteps[place], noise(), 0)
            assert scheduler.step_index == place + 1


def test_of_a_copy_on_a_device_one_timestep_is_read(monkeypatch):
    """The views that follow in memory are taken for the calls that follow; a tensor used again is read again."""
    scheduler = sd_ext.make_scheduler("dpm++ 2m", SD)
    scheduler.set_timesteps(8)
    plain, x = run(scheduler), noise()
    monkeypatch.setattr(Places, "waits", staticmethod(lambda timestep: True))
    scheduler.set_timesteps(8)
    copied = scheduler.timesteps.clone()
    for i, t in enumerate(copied):
        if i:
            with NoReading():
                step(scheduler, t, 2 * x, i)  # a look
                x = step(scheduler, t, x, i)
        else:
            x = step(scheduler, t, x, i)
    assert torch.equal(x, plain)
    scheduler.set_timesteps(8)
    x, reused = noise(), torch.zeros(1)
    for i, t in enumerate(scheduler.timesteps.tolist()):
        x = step(scheduler, reused.fill_(t), x, i)
    assert torch.equal(x, plain)


def test_views_of_an_originals_timesteps_are_known_to_its_copy():
    scheduler = sd_ext.make_scheduler("heun", SD)
    scheduler.set_timesteps(7)
    expected, x = run(scheduler), noise()
    scheduler.set_timesteps(7)
    timesteps = scheduler.timesteps
    for i, t in enumerate(timesteps):
        with NoReading():
            x = step(scheduler, t, x, i)
        scheduler = copy.deepcopy(scheduler)
    assert torch.equal(x, expected)


@over(
    "timestep, words",
    [
        (1001, "timestep 1001 is not one of this run's"),
        (-3.0, "timestep -3 is not one of this run's"),
        (torch.tensor([900, 800, 700]), r"one timestep for the whole batch, got \[900, 800, 700\]"),
        (torch.tensor([]), "one timestep for the whole batch"),
        ("now", "a timestep must be a number or a tensor, got 'now'"),
        (None, "a timestep must be a number or a tensor, got None"),
    ],
)
def test_what_is_no_timestep_is_one_sentence_and_the_run_goes_on(timestep, words):
    scheduler = sd_ext.make_scheduler("dpm++ 2m", SD)
    scheduler.set_timesteps(6)
    expected, x = run(scheduler), noise()
    scheduler.set_timesteps(6)
    for i, t in enumerate(scheduler.timesteps):
        with pytest.raises(InputError, match=words):
            scheduler.step(network(x), timestep, x)
        x = step(scheduler, t, x, i)
    assert torch.equal(x, expected)
