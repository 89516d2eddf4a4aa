"""Which calls run the whole network, as part of a fit: found, kept, and what the network does in a pipeline."""

from __future__ import annotations

import copy
import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sd_ext
from sd_ext.calibration import Effort, Settings, calibrate
from sd_ext.calibration.fit import Fitting, Shape
from sd_ext.calibration.greedy import greedy
from sd_ext.calibration.pipeline import PipelineProblem
from sd_ext.calibration.problem import Sets
from sd_ext.calibration.report.facts import summary
from sd_ext.calibration.student import Course, zero
from sd_ext.calibration.tables import end, known_table
from sd_ext.calibration.teacher import table_of, teach
from sd_ext.calibration.whole_calls import best, count, evenly, exchanges, most_tried
from sd_ext.errors import InputError
from sd_ext.schedulers import Calibration, Fit
from sd_ext.schedulers.calibrated import CalibratedScheduler

from ..schedulers.mixture import Mixture
from .problems import SD, MixtureProblem
from .test_student import random_student

LAM = np.linspace(-2.682, 1, 4)
PROMPTS, SEEDS = ["a red fox", "two boats", "b"], [3, 4, 5]


# ---- the choice ------------------------------------------------------------------------------------------------------


@given(st.integers(2, 30), st.floats(0.05, 0.99))
def test_even_calls_begin_with_the_first_and_are_as_many_as_asked(calls, share):
    whole = evenly(calls, share)
    assert len(whole) == count(calls, share) == max(1, round(share * calls))
    gaps = np.diff([*whole, calls])
    assert whole[0] == 0 and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert evenly(calls, 1.0) is None


@given(st.integers(3, 9), st.floats(0.2, 0.9), st.integers(0, 99))
def test_where_each_call_counts_for_itself_the_best_calls_are_found(calls, share, seed):
    worth = np.random.default_rng(seed).random(calls)
    asked: list[tuple[int, ...]] = []

    def error(whole):
        asked.append(whole)
        return -sum(worth[call] for call in whole[1:])

    start = evenly(calls, share)
    found = best(start, calls, error)
    everything = [(0, *rest) for rest in itertools.combinations(range(1, calls), len(start) - 1)]
    assert error(found) <= error(start)
    asked.pop(), asked.pop()
    assert len(asked) == len(set(asked)) <= 1 + most_tried(calls, share)
    if len([*exchanges(found, calls)]) * 3 <= len(asked) or len(start) <= 3:  # each exchange puts one call right
        assert error(found) == pytest.approx(min(map(error, everything)))


class Reusing(MixtureProblem):
    """Predicts anew in the calls that are whole, and else says again what it said last."""

    stateful = True

    def begin(self, whole_calls=None):
        super().begin()
        self.levels = [1000.0]  # image to image begins in the middle
        self.whole, self.call, self.kept = whole_calls, -1, {}

    def predict(self, pairs, x, t, *rest):
        self.call += 1
        new = super().predict(pairs, x, t, *rest)
        if self.whole is None or self.call in self.whole or not self.kept:
            self.kept = {"last": new}
        return self.kept["last"]


@pytest.fixture(scope="module")
def reusing():
    sets = Sets(24, 24, 8)
    problem = Reusing(Mixture.random(6, 4, seed=3), sets.pairs, stateful=True)
    exact = MixtureProblem(problem.data, sets.pairs)
    return Fitting(problem, sets, 1.0, 1, teach(exact, sets, 1.0, table_of(SD)), SD, Effort(0), whole_share=0.5)


def test_the_whole_calls_of_a_fit_are_the_best_by_validation(reusing):
    fit, shape = reusing.fit(5)
    assert fit.whole_calls == shape.whole_calls and len(fit.whole_calls) == 2 and fit.whole_calls[0] == 0
    levels, errors = shape.student(reusing.problem, 1), {}
    for rest in range(1, 5):
        other = replace(reusing, whole_calls=(0, rest))
        found = greedy(other.on(reusing.sets.for_fit), reusing.teacher, levels)
        errors[0, rest] = other.error(found, reusing.sets.for_validation)
    assert fit.whole_calls == min(errors, key=errors.get)
    assert len(set(errors.values())) == 4  # or the choice would not matter


def test_other_strengths_take_the_whole_calls_with_the_levels(reusing):
    shape = Shape.of("karras", zero(reusing.problem.schedule, LAM, 1), (0, 3))
    fit, same = reusing.fit(4, shape)
    assert fit.whole_calls == (0, 3) and same == shape


def test_a_greedy_fit_of_a_network_that_remembers_takes_one_run(reusing):
    """Where the pairs are one batch; where they are several, each call begins anew, and the result is the same."""
    whole = replace(reusing, whole_calls=(0, 2))
    start = zero(reusing.problem.schedule, LAM, 1)
    made = []
    for batch in (4096, 12):
        reusing.problem.batch, reusing.problem.made = batch, 0
        student = greedy(whole.on(reusing.sets.for_fit), reusing.teacher, start)
        made.append((reusing.problem.made, student.weights))
    reusing.problem.batch = 4096
    (once, weights), (again, others) = made
    assert once == 4 * 24 and again == (1 + 2 + 3 + 4) * 24
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


# ---- in a pipeline ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tiny_pipeline):
    """The tiny pipeline with a U-Net that reuses what the sampler says, and a list of what it computed."""
    made = copy.copy(tiny_pipeline)
    made.register_modules(
        unet=sd_ext.VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_schedule="sampler")
    )
    made.deep = []
    made.unet.mid_block.register_forward_hook(lambda *_: made.deep.append(1))
    return made


def latents(pipe, calls, guidance=5.0, **more):
    noise = {"generator": [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]}
    size = {} if "image" in more else {"width": 64, "height": 64}
    pipe.deep.clear()
    return pipe(
        PROMPTS, num_inference_steps=calls, guidance_scale=guidance, output_type="latent", **size, **noise, **more
    ).images


def test_the_pipeline_reuses_in_the_calls_that_the_fit_says(pipe):
    """And comes to what was fitted, the known sampler in the place of a fit too."""
    problem = PipelineProblem(pipe, PROMPTS, SEEDS)
    student, whole = random_student(problem, 5, 2), (0, 2, 3)
    course = Course(problem, range(3), 5.0, whole_calls=whole)
    known = known_table("dpm++ 2m trailing", 5, problem.config)
    for table, ours in ((student.table(), course.run(student).end), (None, end(course, known))):
        fit = Fit(5, 5.0, table, None, "dpm++ 2m trailing", whole_calls=whole)
        pipe.scheduler = CalibratedScheduler.from_calibration(Calibration((fit,)), problem.config)
        pipe.scheduler.attach(pipe)
        torch.testing.assert_close(latents(pipe, 5), ours, rtol=1e-4, atol=1e-4)
        assert len(pipe.deep) == 3
        assert pipe.scheduler.whole_calls == whole
    every = Course(problem, range(3), 5.0).run(student).end
    assert not torch.allclose(every, course.run(student).end, rtol=1e-3, atol=1e-3)  # or reuse changed nothing


def test_a_run_that_begins_later_has_the_rest_of_the_whole_calls(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    problem = PipelineProblem(pipe, PROMPTS, SEEDS)
    fit = Fit(5, 5.0, random_student(problem, 5, 2).table(), None, "ddim trailing", whole_calls=(0, 1, 3))
    scheduler = CalibratedScheduler.from_calibration(Calibration((fit,)), problem.config, guidance_scale=5.0)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    assert scheduler.whole_calls == (1,)
    other = StableDiffusionImg2ImgPipeline(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    other.deep = pipe.deep
    latents(other, 5, image=torch.zeros(3, 3, 64, 64), strength=0.6)  # calls 2, 3 and 4
    assert len(pipe.deep) == 2  # the first, since nothing has been kept, and call 3


def test_an_exported_sampler_says_that_it_names_no_calls(tiny_pipeline, tmp_path, caplog):
    problem = PipelineProblem(tiny_pipeline, PROMPTS, SEEDS)
    fit = Fit(3, 5.0, random_student(problem, 3, 1).table(), None, "ddim trailing", whole_calls=(0, 2))
    scheduler = CalibratedScheduler.from_calibration(Calibration((fit,)), problem.config, guidance_scale=5.0)
    with caplog.at_level(logging.WARNING):
        scheduler.export(tmp_path / "exported")
    assert any("reuses features in some calls" in record.message for record in caplog.records)


def test_a_scheduler_that_names_none_is_said_and_nothing_is_reused(pipe, tiny_pipeline, caplog):
    pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m", pipe.scheduler.config)
    with caplog.at_level(logging.WARNING):
        ours = latents(pipe, 3)
        latents(pipe, 3)
    assert len(pipe.deep) == 3
    assert sum("names no calls that are whole" in record.message for record in caplog.records) == 1
    tiny_pipeline.deep, own = [], tiny_pipeline.scheduler
    tiny_pipeline.scheduler = pipe.scheduler
    try:
        assert torch.equal(ours, latents(tiny_pipeline, 3))
    finally:
        tiny_pipeline.scheduler = own
        del tiny_pipeline.deep


def test_a_whole_calibration_says_which_calls_are_whole(pipe, monkeypatch, tmp_path, caplog):
    for module in ("tables", "plan"):
        monkeypatch.setattr(f"sd_ext.calibration.{module}.KNOWN", ("dpm++ 2m trailing",))
    asked = {"calls": (3,), "guidance": (4.0, 6.0), "pairs": 2, "teacher_calls": 6, "effort": Effort(0)}
    with caplog.at_level(logging.WARNING):
        scheduler = calibrate(pipe, ["a fox", "a boat"], whole_share=0.6, size=(64, 64), out=tmp_path / "out", **asked)
    assert not any("names no calls" in record.message for record in caplog.records)
    assert len({fit.whole_calls for fit in scheduler.fitted.fits}) == 1
    assert len(scheduler.fitted.fits[0].whole_calls) == 2
    assert scheduler.fitted.at(3, 5.0)[0].whole_calls == scheduler.fitted.fits[0].whole_calls
    assert scheduler.fitted.provenance["whole_share"] == 0.6
    scheduler.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert 'cache_schedule="sampler"' in card and f"3, whole in 0, {scheduler.fitted.fits[0].whole_calls[1]}" in card
    assert f"0, {scheduler.fitted.fits[0].whole_calls[1]} of 3 calls" in summary(scheduler.calibrated)
    loaded = CalibratedScheduler.from_pretrained(tmp_path)
    assert [fit.whole_calls for fit in loaded.fitted.fits] == [fit.whole_calls for fit in scheduler.fitted.fits]


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_shares_that_cannot_be(share):
    with pytest.raises(InputError, match=r"whole calls cannot be|whole_share must be a number"):
        Settings(whole_share=share)


def test_a_network_that_does_not_ask_the_sampler_is_refused(tiny_pipeline):
    with pytest.raises(InputError, match='cache_schedule="sampler"'):
        calibrate(tiny_pipeline, ["a fox"], whole_share=0.5)


@pytest.mark.parametrize("whole", [(), (1, 2), (0, 0, 1), (0, 3, 2), (0, 5), (-1, 0)])
def test_whole_calls_that_cannot_be(whole):
    with pytest.raises(InputError, match="whole calls"):
        Fit(5, 5.0, None, None, "ddim", whole_calls=whole)


def test_a_fit_without_whole_calls_is_saved_as_before():
    fit = Fit(5, 5.0, None, None, "ddim")
    assert "whole_calls" not in fit.to_config()
    some = replace(fit, whole_calls=(0, 2))
    assert Fit.from_config(some.to_config()).whole_calls == (0, 2)
    with pytest.raises(InputError, match="whole_calls"):
        Fit.from_config({**some.to_config(), "whole_calls": ["0"]})
