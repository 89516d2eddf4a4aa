"""Guidance that changes from call to call: the table of two fields against predictions that are mixed anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.attaching import attach, detach
from sd_ext.errors import InputError
from sd_ext.schedulers import guidance
from sd_ext.schedulers.table import P0, Table

from .conftest import SD
from .mixture import Mixture, run_table
from .over import ONE_FIELD, WITNESSES, over
from .random_tables import random_levels, random_rows

PROMPT, NONE = Mixture.random(5, 3, seed=1), Mixture.random(9, 3, seed=2)
SCALE = 3.0
SHAPES = ["linear", "cosine", "interval", "interval 0.1 2", [[0.3, None, 0.0], [0.1, 1.0, 2.5]]]


class Mixed:
    """u + strength (c - u), the strength of each call by its sigma / alpha."""

    def __init__(self, strength):
        self.strength = strength

    def of(self, kind, x, alpha, sigma):
        u, c = (getattr(data, kind)(x, alpha, sigma) for data in (NONE, PROMPT))
        return u + self.strength(sigma / alpha if alpha else np.inf) * (c - u)

    def x0(self, x, alpha, sigma):
        return self.of("x0", x, alpha, sigma)

    def eps(self, x, alpha, sigma):
        return self.of("eps", x, alpha, sigma)


def strength(shape, schedule, levels):
    """The definition: how strong guidance is at sigma / alpha, and a shape over time at the timestep that is told.

    What is returned is asked once a call, in order.
    """
    told = iter(levels.t / 1000)

    def of(ratio):
        t = next(told)
        if schedule.flow:
            t = 1000 / 1001 * (1.0 if np.isinf(ratio) else ratio / (1 + ratio))  # of 0 ... 1000
        if shape == "linear":
            factor = 2 * (1 - t)
        elif shape == "cosine":
            factor = 1 + np.cos(np.pi * t)
        elif isinstance(shape, str):
            low, high = (0.28, 5.42) if shape == "interval" else (0.1, 2.0)
            factor = float(low < ratio <= high)
        else:
            factor = 0.0 if ratio > 0.3 else 2.5 if ratio > 0.1 else 1.0
        return 1 + factor * (SCALE - 1)

    return of


@over("name", WITNESSES, full=ONE_FIELD)
@over("shape", SHAPES)
def test_it_is_the_sampler_on_predictions_that_are_mixed_anew(shape, name):
    """With noise and without; each prediction at its own call's strength, also where a later call weighs it."""
    for calls, begin in ((1, 0), (6, 0), (7, 3)):
        made = [sd_ext.make_scheduler(name, SD, clip_sample=False, guidance_schedule=each) for each in (None, shape)]
        for scheduler in made:
            scheduler.set_timesteps(calls)
        plain, changing = (scheduler.table(begin) for scheduler in made)
        assert plain.fields == 1 and changing.basis == plain.basis
        x = NONE.sample(20, plain.levels.alpha[0], plain.levels.sigma[0], seed=calls)
        wanted = run_table(plain, Mixed(strength(shape, made[0].schedule, plain.levels)), x, seed=3)
        if changing.fields == 1:  # all calls lie where the factor is 1
            assert changing.rows.tolist() == plain.rows.tolist()
        got = run_table(changing, Mixed(lambda ratio: SCALE), x, seed=3, free=PROMPT)
        np.testing.assert_allclose(got, wanted, atol=1e-6)
        if shape in ("linear", "cosine") and calls > 1:
            constant = run_table(plain, Mixed(lambda ratio: SCALE), x, seed=3)
            assert np.abs(constant - wanted).max() > 1e-3


@over("trial", range(30))
def test_of_any_table(trial):
    """Stash, history and both bases; factors by call."""
    rng = np.random.default_rng(trial)
    calls, history = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    rows = random_rows(rng, calls, history)
    table = Table(random_levels(rng, calls), rows, ("x0", "eps")[trial % 2], "nothing")
    factors = rng.normal(size=calls)
    by_ratio = dict(zip(table.levels.ratio[:-1].tolist(), factors, strict=True))
    x = rng.normal(size=(4, 3))
    strengths = Mixed(lambda ratio: 1 + by_ratio[min(by_ratio, key=lambda known: abs(known - ratio))] * (SCALE - 1))
    changing = guidance.reweighed(table, factors)
    got = run_table(changing, Mixed(lambda ratio: SCALE), x, seed=3, free=PROMPT)
    np.testing.assert_allclose(got, run_table(table, strengths, x, seed=3), rtol=1e-9, atol=1e-9)
    both = changing.rows[:, :, P0:-1].reshape(calls, 2, 2, history).sum(2)
    np.testing.assert_allclose(both, rows[:, :, P0:-1], atol=1e-12)
    assert Table.from_json(changing.to_json()).to_json() == changing.to_json()
    assert "c eps" in str(changing) or "c x0" in str(changing)


def test_neutral():
    table = Table(
        random_levels(np.random.default_rng(0), 4), random_rows(np.random.default_rng(0), 4, 2), "x0", "nothing"
    )
    assert guidance.reweighed(table, np.ones(4)) is table
    scheduler = sd_ext.make_scheduler("dpm++ 2m", SD)
    assert scheduler.config["guidance_schedule"] is None and not scheduler.needs_halves
    assert sd_ext.make_scheduler("dpm++ 2m", SD, guidance_schedule="linear").needs_halves


@over("name", ["linear", "cosine"])
def test_shapes_are_the_pipelines_own_strength_on_average(name):
    scheduler = sd_ext.make_scheduler("ddim", SD)
    scheduler.set_timesteps(1000)
    factors = guidance.factors(name, scheduler.levels, scheduler.schedule)
    assert np.all(np.diff(factors) > 0) and abs(factors.mean() - 1) < 2e-3


PROCESSES = ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "MiniMaxH3Scheduler", "IPNDMScheduler"]
"""Whose networks are told other numbers than training times."""


@over("name", ["linear", "cosine"])
@over("process", PROCESSES)
def test_shapes_go_by_training_times_whatever_the_network_is_told(process, name):
    scheduler = sd_ext.make_scheduler("dpm++ 2m", {"_class_name": process}, guidance_schedule=name)
    scheduler.set_timesteps(20)
    factors = guidance.factors(name, scheduler.levels, scheduler.schedule)
    assert np.all(np.diff(factors) > 0) and 0 <= factors[0] < 0.3 and 1.2 < factors[-1] <= 2
    assert scheduler.table().fields == 2


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ddim", {"guidance_schedule": "cubic"}, "must be 'linear', 'cosine', 'interval'"),
        ("ddim", {"guidance_schedule": "interval 1"}, "must be 'linear'"),
        ("ddim", {"guidance_schedule": "interval one two"}, "must be 'linear'"),
        ("ddim", {"guidance_schedule": "interval 2 1"}, "0 <= low < high"),
        ("ddim", {"guidance_schedule": [[2.0, 1.0, 0.5]]}, "0 <= low < high"),
        ("ddim", {"guidance_schedule": [[2.0, 1.0]]}, "guidance_schedule"),
        ("ddim", {"guidance_schedule": 3}, "guidance_schedule"),
        ("ddim", {"guidance_schedule": "linear", "clip_sample": True}, "clip_sample does not allow"),
        ("ddim", {"guidance_schedule": "linear", "thresholding": True}, "thresholding does not allow"),
        ("euler cfg++", {"guidance_schedule": "linear"}, "EulerCFGPlusPlusScheduler weighs the halves"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(InputError, match=message):
        sd_ext.make_scheduler(name, SD, **options)


def test_in_a_pipeline_saved_loaded_and_exported(tiny_pipeline, tmp_path):
    """As Diffusers draws with guidance that a callback switches off, which is an interval that ends."""
    pipe, calls = tiny_pipeline, 5

    def draw(**more):
        generator = torch.Generator().manual_seed(0)
        more = {"guidance_scale": 4.0, "generator": generator, **more}
        return pipe("a b", num_inference_steps=calls, output_type="latent", **more).images

    def weaken(pipeline, step, timestep, values):
        pipeline._guidance_scale = 1 + 3 * (strengths[step + 1] if step + 1 < calls else 1)
        return values

    scheduler = sd_ext.make_scheduler("dpm++ 2m", pipe.scheduler.config)
    scheduler.set_timesteps(calls)
    ratios = scheduler.levels.ratio
    low, high = float(ratios[3]), 1000.0
    pieces = [[low, high, 1.5], [0.0, low, 0.5]]
    strengths = [1.5, 1.5, 1.5, 0.5, 0.5]
    pipe.scheduler = scheduler
    wanted = draw(guidance_scale=1 + 3 * 1.5, callback_on_step_end=weaken)
    pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m", pipe.scheduler.config, guidance_schedule=pieces)
    pipe.scheduler.save_pretrained(tmp_path / "saved")
    pipe.scheduler.export(tmp_path / "exported", calls)
    attach(pipe)
    try:
        got = draw()
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        pipe.scheduler = sd_ext.DPMSolverMultistepScheduler.from_pretrained(tmp_path / "saved")
        assert torch.equal(draw(), got)
    finally:
        detach(pipe)
    from sd_ext.schedulers.exported import ExportedScheduler

    pipe.scheduler = ExportedScheduler.from_pretrained(tmp_path / "exported")
    pipe.scheduler.attach(pipe)
    try:
        assert torch.equal(draw(), got)
    finally:
        detach(pipe)
