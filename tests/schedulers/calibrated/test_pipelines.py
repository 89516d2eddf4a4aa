"""Inside pipelines: who tells the strength of guidance, and what differs from what was fitted is said once."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

import sd_ext
from sd_ext.attaching import PIPELINES, attach, detach, pipelines_of
from sd_ext.board import BOARD
from sd_ext.schedulers.calibrated import pipelines, sample_of_weights
from sd_ext.schedulers.calibrated.pipelines import TENSORS, VALUES, guidance_in, guidance_of, has_weights

from .family import calibration, companion_of, fit, table_at
from .test_fits import same
from .test_scheduler import KNOWN, said  # noqa: F401  (a fixture)


@pytest.fixture
def pipe(tiny_pipeline):
    BOARD.notes.clear()
    yield tiny_pipeline
    detach(tiny_pipeline)
    PIPELINES.clear()


def put_on(pipe, *fits, attached=True, options=None, **provenance):
    """A calibrated scheduler for the pipeline, made for pictures of its own size by it."""
    given = {"model_sample": sample_of_weights(pipe.unet), "size": [64, 64], **provenance}
    pipe.scheduler = sd_ext.CalibratedScheduler.from_calibration(
        calibration(*fits, **given), pipe.scheduler.config, **(options or {})
    )
    if attached:
        pipe.scheduler.attach(pipe)
    return pipe.scheduler


def draw(pipe, guidance=4.0, steps=5, side=64, **more):
    size = {} if "image" in more else {"height": side, "width": side}
    return pipe(
        "a b", num_inference_steps=steps, guidance_scale=guidance, output_type="latent",
        generator=torch.Generator().manual_seed(0), **size, **more,
    ).images  # fmt: skip


def test_attached_pipelines_tell_their_strength_from_the_first_call_on(pipe, said, caplog):  # noqa: F811
    scheduler = put_on(pipe)
    for guidance, table in ((7.5, table_at(7.5)), (4.0, table_at(4.0)), (3.0, calibration().at(5, 3.0)[0].table)):
        picture = draw(pipe, guidance)
        assert scheduler.strength == guidance
        same(scheduler.table(), table)
        pipe.scheduler = sd_ext.CalibratedScheduler.from_config(scheduler.config, guidance_scale=guidance)
        assert not said()
        assert torch.equal(draw(pipe, 7.5), draw(pipe, 7.5)) and torch.equal(draw(pipe, guidance), picture)
        assert len(said()) == (guidance != 7.5) and all("guided at 7.5, and its sampler is" in text for text in said())
        caplog.clear()
        pipe.scheduler = scheduler
    twin = copy.copy(scheduler)  # as an export makes it: no pipeline's own, but what was told is known
    assert twin.strength == 3.0
    same(scheduler.table(), calibration().at(5, 3.0)[0].table)


def test_a_pipeline_that_shares_the_scheduler_of_an_attached_one_is_told(pipe, said):  # noqa: F811
    """As `from_pipe` makes them: the strength that was told is another pipeline's."""
    put_on(pipe)
    draw(pipe, 3.0)
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    draw(other, 3.0)
    assert not said()
    draw(other, 6.0)
    assert len(said()) == 1 and "this run was guided at 6, and its sampler is the one for 3" in said()[0]


def lower(pipeline, step, timestep, values):
    pipeline._guidance_scale = 7.5 - step
    return values


@pytest.mark.parametrize("callback", [lower, SDCFGCutoffCallback(cutoff_step_ratio=0.5)], ids=["lower", "cutoff"])
def test_guidance_that_a_callback_changes_is_no_other_strength(pipe, said, callback):  # noqa: F811
    scheduler, announced = put_on(pipe), []
    inner = scheduler.set_timesteps
    scheduler.set_timesteps = lambda *args, **more: (inner(*args, **more), announced.append(scheduler.table()))
    draw(pipe, 7.5, callback_on_step_end=callback)
    same(announced[0], table_at(7.5))
    assert not [text for text in said() if "guided at" in text]


@pytest.mark.parametrize("number", [np.int64(6), np.float32(6), torch.tensor(6.0), 6])
def test_a_strength_is_any_number(pipe, said, number):  # noqa: F811
    scheduler = put_on(pipe)
    draw(pipe, 3.0)
    draw(pipe, number)
    assert scheduler.strength == 6 and not said()


def test_the_strength_in_a_prediction():
    free, prompted = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for strength in (0.5, 1.0, 7.5):
        guided = free + strength * (prompted - free)
        assert guidance_in(guided, free, prompted) == pytest.approx(strength, abs=1e-5)
        assert guidance_in(guided * 0.7, free, prompted) is None  # rescaled
    assert guidance_in(free, free, free) is None


def test_without_guidance_the_companion_runs(pipe, said):  # noqa: F811
    scheduler = put_on(pipe, fit(1.5))
    picture = draw(pipe, 1.0)
    assert scheduler.strength == 1.0
    assert [text.partition(": ")[2][:44] for text in said()] == [
        "fitted for guidance 1.5 and not for 1: 1.5 i",
        "no network leaves its unconditional predicti",
    ]
    put_on(pipe, replace(fit(1.5), table=companion_of(table_at(1.5)), companion=None))
    assert torch.equal(draw(pipe, 1.0), picture)


def test_not_attached_it_says_so_and_draws(pipe, said):  # noqa: F811
    put_on(pipe, attached=False)
    draw(pipe)
    draw(pipe)
    assert len(said()) == 2
    assert "4 is taken: call pipe.scheduler.attach(pipe)" in said()[0] and "table of one field runs" in said()[1]


def test_which_pipelines_are_a_schedulers(pipe):
    first, second = put_on(pipe), sd_ext.make_scheduler(KNOWN, pipe.scheduler.config)
    assert pipelines_of(first) == [pipe] and guidance_of(pipe) is None
    pipe.scheduler = second
    assert not pipelines_of(first) and pipelines_of(second) == [pipe]
    detach(pipe)
    assert not pipelines_of(second)
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    attach(other)
    assert pipelines_of(second) == [other]
    del other
    assert not pipelines_of(second)  # they are not kept alive
    odd = SimpleNamespace(unet=pipe.unet, scheduler=second)  # which cannot be kept track of
    attach(odd)
    assert not pipelines_of(second)
    detach(odd)


def test_two_pipelines_of_two_strengths_are_told_to_part(pipe, said):  # noqa: F811
    scheduler = put_on(pipe)
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    attach(other)
    draw(pipe, 4.0)
    assert not said()
    draw(other, 7.5)
    assert len(said()) == 1 and "guidance 4, 7.5; give each a scheduler of its own" in said()[0]
    assert scheduler.strength == 7.5


# ---- what it was made for --------------------------------------------------------------------------------------------


def test_a_network_is_known_by_a_few_weights_in_any_precision(pipe):
    sample = sample_of_weights(pipe.unet)
    assert len(sample) == TENSORS and all(1 <= len(values) <= VALUES for values in sample.values())
    assert sample == sample_of_weights(pipe.unet)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        network = copy.deepcopy(pipe.unet).to(dtype)
        assert has_weights(network, sample) and has_weights(pipe.unet, sample_of_weights(network))
    assert has_weights(copy.deepcopy(pipe.unet).to(memory_format=torch.channels_last), sample)
    assert has_weights(copy.deepcopy(pipe.unet).to("meta"), sample) is None
    changed = copy.deepcopy(pipe.unet)
    name = list(sample)[5]
    with torch.no_grad():
        changed.get_parameter(name).mul_(1.01)
    assert has_weights(changed, sample) is False
    assert has_weights(torch.nn.Linear(2, 2), sample) is False


def test_another_model_another_size_and_a_lora_are_said_once(pipe, said, monkeypatch):  # noqa: F811
    put_on(pipe)
    draw(pipe)
    assert not said()
    sample = {name: [2 * value for value in values] for name, values in sample_of_weights(pipe.unet).items()}
    put_on(pipe, model="a/model", model_sample=sample, size=[64, 32])
    monkeypatch.setattr(pipelines, "lora_strengths", lambda pipe: {"known": 0.5, "toy": 1.0})
    for _ in range(2):
        draw(pipe)
    texts = [text.partition(": ")[2] for text in said()]
    assert len(texts) == 3
    assert texts[0].startswith("fitted to a/model, and this U-Net's weights differ")
    assert texts[1].startswith("fitted without the LoRA known, toy, which is in use")
    assert texts[2].startswith("fitted at 64 x 32 pixels and drawing 64 x 64")
    put_on(pipe, lora={"toy": 1.0, "known": 0.5})
    draw(pipe)
    assert len(said()) == 3
    put_on(pipe, lora={"toy": 0.3, "known": 0.52, "gone": 0.7})
    draw(pipe)
    assert [text.partition(": ")[2] for text in said()[3:]] == [
        "fitted with the LoRA gone at 0.7, which does not act here: expect more error",
        "fitted with the LoRA toy at 0.3, which acts at 1 here: expect more error",
    ]


def test_a_lora_of_peft_is_seen_and_hides_no_weights(tiny_pipeline_dir, said):  # noqa: F811
    from peft import LoraConfig

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    sample = sample_of_weights(pipe.unet)
    scheduler = put_on(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0", "conv1"]), "toy")
    assert has_weights(pipe.unet, sample) and sample_of_weights(pipe.unet) == sample
    scheduler.set_timesteps(5)
    assert [text for text in said() if "without the LoRA toy" in text]
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=1, use_rslora=True, target_modules=["to_k"]), "rooted")
    pipe.unet.set_adapters(["toy", "rooted"], [0.3, 2.0])
    assert pipelines.lora_strengths(pipe) == {"rooted": 2.0, "toy": 0.3}
    pipe.unet.set_adapters(["toy"], [{"down": 0.2, "mid": 0.4, "up": 0.4}])
    assert 0.2 < pipelines.lora_strengths(pipe)["toy"] < 0.6
    pipe.unet.disable_adapters()
    assert pipelines.lora_strengths(pipe) == {}
    assert not [text for text in said() if "weights differ" in text]


# ---- saved pipelines, other pipelines --------------------------------------------------------------------------------


def test_saved_pipelines_load_and_draw_the_same(pipe, tmp_path):
    put_on(pipe)
    expected = draw(pipe, 3.0)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is sd_ext.CalibratedScheduler
    loaded.scheduler.attach(loaded)
    assert torch.equal(draw(loaded, 3.0), expected)


def test_our_own_networks_need_no_attaching_for_two_fields(pipe, said):  # noqa: F811
    put_on(pipe)
    expected = draw(pipe)
    detach(pipe)
    pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(pipe.unet)
    put_on(pipe, attached=False, options={"guidance_scale": 4.0})
    torch.testing.assert_close(draw(pipe), expected)
    assert not said()


def test_image_to_image_begins_in_the_middle(pipe, said):  # noqa: F811
    image = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    image.set_progress_bar_config(disable=True)
    scheduler = put_on(image)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    calls = []
    handle = image.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        for strength, begin in ((0.6, 2), (0.4, 3), (1.0, 0)):
            calls.clear()
            out = draw(image, image=picture, strength=strength)
            assert torch.isfinite(out).all() and len(calls) == 5 - begin == scheduler.table(begin).calls
            assert scheduler.begin_index == begin
    finally:
        handle.remove()
    assert not said()
