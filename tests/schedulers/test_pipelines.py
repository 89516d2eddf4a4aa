"""Samplers inside standard pipelines; saving, loading and converting."""

from __future__ import annotations

import json
import warnings

import diffusers
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError, UnknownNameError

from .conftest import SD
from .over import CLASSES, NAMES, WITNESSES, over


def picture(pipe, steps=4, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return pipe("a b", num_inference_steps=steps, generator=generator, output_type="latent", **arguments).images


@over("name", WITNESSES, full=NAMES)
def test_text_to_image_makes_the_calls_it_says(name, tiny_pipeline):
    tiny_pipeline.scheduler = sd_ext.make_scheduler(name, tiny_pipeline.scheduler.config)
    seen = []
    handle = tiny_pipeline.unet.register_forward_hook(lambda *_: seen.append(1))
    try:
        first = picture(tiny_pipeline, steps=5)
    finally:
        handle.remove()
    assert len(seen) == 5
    assert torch.isfinite(first).all()
    assert torch.equal(picture(tiny_pipeline, steps=5), first)


def test_pipeline_pictures_equal_diffusers(tiny_pipeline):
    config = tiny_pipeline.scheduler.config
    for ours, theirs in (
        (sd_ext.make_scheduler("ddim", config), diffusers.DDIMScheduler.from_config(config)),
        (sd_ext.make_scheduler("dpm++ 2m", config), diffusers.DPMSolverMultistepScheduler.from_config(config)),
        (sd_ext.make_scheduler("euler", config), diffusers.EulerDiscreteScheduler.from_config(config)),
    ):
        tiny_pipeline.scheduler = ours
        a = picture(tiny_pipeline, steps=10)
        tiny_pipeline.scheduler = theirs
        b = picture(tiny_pipeline, steps=10)
        assert (a - b).abs().max() / b.abs().max() < 1e-3, type(ours).__name__


@over("name", WITNESSES, full=NAMES)
def test_image_to_image_at_several_strengths(name, tiny_pipeline):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = sd_ext.make_scheduler(name, pipe.scheduler.config)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for strength, calls in ((0.3, 2), (1.0, 7)):
        seen = []
        handle = pipe.unet.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        try:
            out = pipe(
                "a", image=image, strength=strength, num_inference_steps=7, output_type="latent",
                generator=torch.Generator().manual_seed(0),
            ).images  # fmt: skip
        finally:
            handle.remove()
        assert torch.isfinite(out).all()
        assert len(seen) == calls


def test_saved_pipelines_name_the_package(tiny_pipeline, tmp_path):
    tiny_pipeline.scheduler = sd_ext.make_scheduler("dpm++ 2m karras", tiny_pipeline.scheduler.config)
    expected = picture(tiny_pipeline)
    tiny_pipeline.save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["scheduler"] == ["sd_ext", "DPMSolverMultistepScheduler"]
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is sd_ext.DPMSolverMultistepScheduler
    assert loaded.scheduler.config["grid"] == "karras"
    assert torch.equal(picture(loaded), expected)


@over("cls", CLASSES)
def test_round_trips(cls, tmp_path):
    scheduler = cls(**SD, grid="beta")
    scheduler.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in scheduler.config.items() if k[0] != "_"
    }
    assert cls.from_config(scheduler.config).config["grid"] == "beta"


@pytest.fixture(scope="module")
def diffusers_configs() -> list:
    """Configs of Diffusers' compatible schedulers, save EDM's (another process, without betas)."""
    classes = [c for c in diffusers.DDIMScheduler().compatibles if c.__name__ != "EDMEulerScheduler"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c(**SD).config for c in classes if not getattr(c, "_backends", None)]


@over("cls", CLASSES)
def test_from_the_config_of_every_diffusers_scheduler(cls, diffusers_configs):
    assert len(diffusers_configs) > 10
    for config in diffusers_configs:
        ours = cls.from_config(config)
        assert ours.config["beta_schedule"] == "scaled_linear"
        ours.set_timesteps(3)
        assert len(ours.timesteps) == 3


def test_unknown_keys_survive_a_round_trip_through_diffusers():
    ours = sd_ext.make_scheduler("dpm++ 2m", SD, grid="ays", exact_third_order=True)
    theirs = diffusers.EulerDiscreteScheduler.from_config(ours.config)
    back = sd_ext.DPMSolverMultistepScheduler.from_config(theirs.config)
    assert back.config["grid"] == "ays" and back.config["exact_third_order"] is True


@over(
    "name, cls, grid",
    [
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", "karras"),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", None),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", None),
        ("Euler a", "EulerAncestralDiscreteScheduler", None),
        ("PNDMScheduler", "PNDMScheduler", None),
        ("DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler", None),
        ("heun lambda_uniform", "HeunDiscreteScheduler", "lambda_uniform"),
    ],
)
def test_names_people_know(name, cls, grid):
    scheduler = sd_ext.make_scheduler(name)
    assert type(scheduler).__name__ == cls
    assert scheduler.config["grid"] == grid


def test_make_scheduler_errors():
    with pytest.raises(UnknownNameError, match=r"'dpm\+\+ 2m'"):
        sd_ext.make_scheduler("dpm++ 2n")
    with pytest.raises(UnknownNameError, match="karras"):
        sd_ext.make_scheduler("ddim", grid="karas")
    with pytest.raises(InputError, match="no option colour"):
        sd_ext.make_scheduler("ddim", colour=1)


def test_wrong_arguments_are_type_errors():
    with pytest.raises(TypeError):
        sd_ext.DDIMScheduler(beta_strat=0.1)
