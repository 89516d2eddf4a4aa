"""A pipeline as a problem: the predictions are those of the pipeline itself."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import sd_ext
from sd_ext.attaching import attach, detach
from sd_ext.calibration.pipeline import PipelineProblem, scheduler_of
from sd_ext.calibration.plan import fit_batch
from sd_ext.calibration.problem import Sets
from sd_ext.calibration.student import Course, zero
from sd_ext.calibration.tables import end, known_table
from sd_ext.calibration.teacher import table_of, teach
from sd_ext.errors import InputError
from sd_ext.schedulers import make_scheduler
from sd_ext.schedulers.calibrated import CalibratedScheduler, Calibration, Fit

from ..conftest import build_tiny_sdxl_pipeline
from .test_student import random_student

PROMPTS, SEEDS = ["a red fox", "two boats", "b"], [3, 4, 5]


def drawn(pipe, scheduler, calls, guidance, size=(64, 64), **more):
    """The latents that the pipeline itself comes to."""
    own, pipe.scheduler = pipe.scheduler, scheduler
    try:
        return pipe(
            PROMPTS, num_inference_steps=calls, guidance_scale=guidance, width=size[0], height=size[1],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS], output_type="latent", **more,
        ).images  # fmt: skip
    finally:
        pipe.scheduler = own


def v_prediction(pipe):
    """The same networks, taken to predict v."""
    config = {**pipe.scheduler.config, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    pipe.scheduler = type(pipe.scheduler).from_config(config, timestep_spacing="trailing")
    return pipe


@pytest.fixture(params=["sdxl", "v_prediction", pytest.param("sd15", marks=pytest.mark.slow)])
def pipe(request, tiny_pipeline):
    if request.param == "sdxl":
        return build_tiny_sdxl_pipeline()
    return v_prediction(tiny_pipeline) if request.param == "v_prediction" else tiny_pipeline


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_known_table_leads_to_the_pipelines_own_latents(pipe, guidance):
    problem = PipelineProblem(pipe, PROMPTS, SEEDS, batch=2)
    ours = end(Course(problem, range(3), guidance), known_table("dpm++ 2m trailing", 4, problem.config))
    theirs = drawn(pipe, make_scheduler("dpm++ 2m trailing", pipe.scheduler.config), 4, guidance)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_config_that_does_not_speak_of_clipping_is_not_clipped(tiny_pipeline):
    """DPM-Solver's config has no `clip_sample`, and DDIM's default is to clip: latents are not pixels."""
    told = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plain = DPMSolverMultistepScheduler(**told, prediction_type="v_prediction", timestep_spacing="trailing")
    tiny_pipeline.scheduler = plain
    problem = PipelineProblem(tiny_pipeline, PROMPTS, SEEDS, batch=2)
    guided, _ = problem.predict(range(3), problem.start(range(3)), 999.0, 0.0683, 0.9977, 5.0)
    assert guided.abs().max() > 1
    ours = end(Course(problem, range(3), 5.0), known_table("dpm++ 2m trailing", 4, problem.config))
    torch.testing.assert_close(ours, drawn(tiny_pipeline, plain, 4, 5.0), rtol=1e-4, atol=1e-4)


def test_a_student_of_two_fields_leads_to_what_the_pipeline_draws_with_its_table(pipe):
    problem = PipelineProblem(pipe, PROMPTS, SEEDS)
    student = random_student(problem, 4, 2)
    ours = Course(problem, range(3), 6.0).run(student).end
    calibration = Calibration((Fit(4, 6.0, student.table(), None, "ddim trailing"),))
    scheduler = CalibratedScheduler.from_calibration(calibration, pipe.scheduler.config)
    own, pipe.scheduler = pipe.scheduler, scheduler
    scheduler.attach(pipe)
    pipe.scheduler = own
    torch.testing.assert_close(drawn(pipe, scheduler, 4, 6.0), ours, rtol=1e-4, atol=1e-4)


def test_a_fit_that_is_euler_draws_eulers_pictures(tiny_pipeline):
    euler = known_table("ddim trailing", 5, scheduler_of(tiny_pipeline).config)
    problem = PipelineProblem(tiny_pipeline, PROMPTS, SEEDS)
    table = zero(problem.schedule, euler.levels.lam[:-1], 2).table()
    calibration = Calibration((Fit(5, 5.0, table, None, "ddim trailing"),))
    scheduler = CalibratedScheduler.from_calibration(calibration, tiny_pipeline.scheduler.config, guidance_scale=5.0)
    attach(tiny_pipeline.unet)
    try:
        ours = drawn(tiny_pipeline, scheduler, 5, 5.0)
    finally:
        detach(tiny_pipeline.unet)
    theirs = drawn(tiny_pipeline, make_scheduler("ddim trailing", tiny_pipeline.scheduler.config), 5, 5.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_size_and_negative_prompt_are_the_pipelines(tiny_pipeline):
    problem = PipelineProblem(tiny_pipeline, PROMPTS, SEEDS, (96, 64), negative="blurry")
    assert problem.start(range(3)).shape == (3, 4, 8, 12)
    ours = end(Course(problem, range(3), 4.0), known_table("ddim trailing", 2, problem.config))
    scheduler = make_scheduler("ddim trailing", tiny_pipeline.scheduler.config)
    theirs = drawn(tiny_pipeline, scheduler, 2, 4.0, (96, 64), negative_prompt=["blurry"] * 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_pipeline_is_left_as_it_was(tiny_pipeline):
    own, hooks = tiny_pipeline.scheduler, dict(tiny_pipeline.unet._forward_pre_hooks)
    PipelineProblem(tiny_pipeline, PROMPTS, SEEDS)
    assert tiny_pipeline.scheduler is own and dict(tiny_pipeline.unet._forward_pre_hooks) == hooks


def test_what_a_call_leaves_in_a_pipeline_is_as_it_was(tiny_pipeline):
    """Such as the strength of guidance, which a calibrated scheduler would take for the pipeline's."""
    for guidance in (None, 3.0):
        if guidance is not None:
            drawn(tiny_pipeline, sd_ext.make_scheduler("ddim", tiny_pipeline.scheduler.config), 2, guidance)
        before = {name: value for name, value in vars(tiny_pipeline).items() if name.startswith("_")}
        PipelineProblem(tiny_pipeline, PROMPTS, [1, 2, 3])
        after = {name: value for name, value in vars(tiny_pipeline).items() if name.startswith("_")}
        assert before.keys() == after.keys() and getattr(tiny_pipeline, "_guidance_scale", None) == guidance
        assert before.get("_progress_bar_config") == after.get("_progress_bar_config")


def test_a_cached_network_draws_as_in_the_pipeline(tiny_pipeline):
    """What it keeps from step to step is forgotten between runs, and runs of several batches do not mix."""
    pipe = copy.copy(tiny_pipeline)
    pipe.register_modules(unet=sd_ext.CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_interval=2))
    problem = PipelineProblem(pipe, PROMPTS, SEEDS)
    assert problem.stateful
    student, course = random_student(problem, 4, 2), Course(problem, range(3), 5.0)
    whole = course.run(student)
    torch.testing.assert_close(course.run(student, 2, whole.states[2]).end, whole.end)
    problem.begin()
    plain = Course(PipelineProblem(tiny_pipeline, PROMPTS, SEEDS), range(3), 5.0).run(student).end
    assert not torch.allclose(plain, whole.end)  # or nothing was kept
    pipe.unet.reset()
    table = known_table("ddim trailing", 4, problem.config)
    theirs = drawn(pipe, make_scheduler("ddim trailing", pipe.scheduler.config), 4, 5.0)
    torch.testing.assert_close(end(course, table), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", [{"cfg_rescale": 0.7}, {"apg_eta": 0.0}, {"pag_scale": 2.0}])
def test_guidance_of_the_network_acts_as_it_does_in_the_pipeline(tiny_pipeline, option):
    """It is told how strongly, and by which scheduler."""
    pipe = copy.copy(tiny_pipeline)
    pipe.register_modules(unet=sd_ext.VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, **option))
    ends = []
    for each in (pipe, tiny_pipeline):
        problem = PipelineProblem(each, PROMPTS, SEEDS)
        ends.append(end(Course(problem, range(3), 5.0), known_table("dpm++ 2m trailing", 3, problem.config)))
    theirs = drawn(pipe, make_scheduler("dpm++ 2m trailing", pipe.scheduler.config), 3, 5.0)
    torch.testing.assert_close(ends[0], theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*ends, rtol=1e-3, atol=1e-3)  # or the option did nothing


def test_the_teacher_of_a_cached_network_reuses_nothing(tiny_pipeline):
    """So that rows are fitted to what the network is, and to what it should be."""
    pipe = copy.copy(tiny_pipeline)
    pipe.register_modules(unet=sd_ext.CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_interval=2))
    taught = []
    for each in (tiny_pipeline, pipe):
        problem = PipelineProblem(each, PROMPTS, SEEDS)
        taught.append(teach(problem, Sets(1, 1, 1), 5.0, table_of(problem.config, calls=6)))
    assert torch.equal(taught[0].end, taught[1].end)
    assert pipe.unet.options["cache_interval"] == 2


def test_a_batch_that_does_not_fit_is_halved(tiny_pipeline, monkeypatch):
    problem = PipelineProblem(tiny_pipeline, PROMPTS, SEEDS)
    predict = problem.predict

    def full(pairs, *rest):
        if len(pairs) > 1:
            raise torch.OutOfMemoryError
        return predict(pairs, *rest)

    monkeypatch.setattr(problem, "predict", full)
    assert fit_batch(problem, 5.0) > 0 and problem.batch == 1
    monkeypatch.setattr(problem, "predict", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(InputError, match="one picture needs more memory"):
        fit_batch(problem, 5.0)


# ---- what is not understood ------------------------------------------------------------------------------------------


def changed(pipe, **config):
    """The pipeline with a U-Net that says other things of itself."""
    unet = copy.copy(pipe.unet)
    unet.register_to_config(**config)
    other = copy.copy(pipe)
    other.register_modules(unet=unet)
    return other


def test_networks_that_are_not_understood_are_refused(tiny_pipeline):
    for config, said in (
        ({"in_channels": 9}, "takes 9 channels and gives 4"),
        ({"time_cond_proj_dim": 8}, "distilled"),
        ({"encoder_hid_dim_type": "ip_image_proj"}, r"IP-Adapter.*call pipe\.unload_ip_adapter"),
    ):
        with pytest.raises(InputError, match=said):
            PipelineProblem(changed(tiny_pipeline, **config), PROMPTS, SEEDS)
    with pytest.raises(InputError, match="SimpleNamespace has no U-Net"):
        PipelineProblem(types.SimpleNamespace(), PROMPTS, SEEDS)


def test_a_scheduler_that_tells_no_noise_schedule_is_refused():
    with pytest.raises(InputError, match="SimpleNamespace does not tell the noise schedule"):
        scheduler_of(types.SimpleNamespace(scheduler=types.SimpleNamespace()))


def test_what_the_pipeline_refuses_is_one_sentence(tiny_pipeline):
    with pytest.raises(InputError, match=r"StableDiffusionPipeline refuses to draw these prompts: .*divisible by 8"):
        PipelineProblem(tiny_pipeline, PROMPTS, SEEDS, (65, 64))
    with pytest.raises(InputError, match="no prompts"):
        PipelineProblem(tiny_pipeline, [], [])
