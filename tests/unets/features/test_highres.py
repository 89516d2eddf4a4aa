"""Large pictures: exact at the training size, seen from further away beyond it, only while the composition is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_ext import HighResUNet2DConditionModel, VariantUNet2DConditionModel
from sd_ext.errors import InputError
from sd_ext.unets.inside.shrinking import pairs, shrunk

from ...zoo import ZOO
from ..tiny import BASE, build, control, draw, inputs


@pytest.fixture(scope="module", params=["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def plain(request) -> Any:
    return build(request.param)


SDXL, TWO_LEVELS = build("sdxl"), build()


def variant(plain: Any, **options: Any) -> VariantUNet2DConditionModel:
    return VariantUNet2DConditionModel.from_unet(plain, **options)


@torch.no_grad()
def call(unet: Any, **changes: Any) -> torch.Tensor:
    return unet(**{**inputs(unet, timestep=900), **changes}).sample


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 19), (8, 8)])
def test_at_the_training_size_and_its_other_aspects_it_is_the_plain_unet_to_the_last_bit(plain, size):
    model, sample = HighResUNet2DConditionModel.from_unet(plain), draw(2, 4, *size)
    assert torch.equal(call(model, sample=sample), call(plain, sample=sample))


@pytest.mark.parametrize("until", [0, 0.0])
def test_neutral_values_leave_no_hook(plain, until):
    for options in ({"highres_until": until, "highres_factor": 2}, {"highres_factor": 1}):
        model = variant(plain, **options)
        assert model.describe() == "plain"
    model = variant(plain, highres_factor=2)
    assert not torch.equal(call(model), call(plain))
    model.set_options(highres_factor=1)
    assert torch.equal(call(model), call(plain))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("block", [0, 1])
@given(st.integers(1, 40), st.integers(1, 40), st.floats(1.01, 8))
@settings(deadline=None, max_examples=8)
def test_any_picture_by_any_factor_comes_back_at_its_own_size(block, height, width, factor):
    model = variant(SDXL, highres_factor=factor, highres_block=block)
    sample = draw(1, 4, height, width)
    one = {
        "encoder_hidden_states": draw(1, 5, 8),
        "added_cond_kwargs": {"text_embeds": draw(1, 8), "time_ids": torch.ones(1, 6)},
    }
    assert call(model, sample=sample, **one).shape == sample.shape


@pytest.mark.parametrize("factor", [1.5, 2, 2.7, 4])
@pytest.mark.parametrize("block", [0, 1])
def test_auto_runs_everything_below_the_block_on_the_training_grid(plain, factor, block):
    model = variant(plain, highres_factor="auto", highres_block=block)
    side, seen = round(16 * factor), []
    model.down_blocks[block + 1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[-2:]), with_kwargs=True
    )
    sample = draw(1, 4, side, side)
    one = {k: v[:1] for k, v in inputs(plain).items() if torch.is_tensor(v)}
    if "added_cond_kwargs" in inputs(plain):
        one["added_cond_kwargs"] = {k: v[:1] for k, v in inputs(plain)["added_cond_kwargs"].items()}
    assert call(model, **{**one, "sample": sample}).shape == sample.shape
    trained = 16 >> (block + 1)
    assert seen == [(trained, trained)]


def test_a_downscaled_pass_sees_as_much_further_as_it_is_downscaled():
    """How far one latent reaches: without attention and normalisation, which reach everywhere, by the gradient."""
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "mid_block_type": None}
    plain = build("inpainting", **{**blocks, "in_channels": 4}).double()
    for module in plain.modules():
        if hasattr(module, "norm1"):
            module.norm1, module.norm2 = torch.nn.Identity(), torch.nn.Identity()
    plain.conv_norm_out = None

    def reach(model: Any) -> int:
        sample = draw(1, 4, 128, 8).double().requires_grad_()
        model(sample, 900, draw(1, 5, 8).double()).sample[0, :, 64].sum().backward()
        rows = sample.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        return int(rows.max() - rows.min()) + 1

    # The part below the block: what the full-size blocks around it see is seen by both.
    exact, doubled, fourfold = (reach(variant(plain, highres_factor=f)) for f in (1, 2, 4))
    outside = reach_outside(plain)
    assert doubled - outside >= 1.9 * (exact - outside)
    assert fourfold - outside >= 3.5 * (exact - outside)


def reach_outside(plain: Any) -> int:
    """Rows that the convolutions at full size see."""
    convolutions = [
        module
        for block in (plain.conv_in, plain.down_blocks[0].resnets, plain.up_blocks[-1].resnets, plain.conv_out)
        for module in block.modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    return 1 + 2 * len(convolutions)


@given(st.integers(1, 60), st.floats(0, 1))
@settings(deadline=None, max_examples=20)
def test_the_first_share_of_the_schedule_is_downscaled(steps, until):
    model = variant(TWO_LEVELS, highres_factor=2.0, highres_until=max(until, 1e-6))
    timesteps, early = torch.linspace(999, 0, steps).round().long(), []
    feature = model.active_features[0]
    for t in timesteps:
        model._states.observe(t)
        early.append(feature.is_early())
    expected = sum(int(t) >= 1000 * (1 - max(until, 1e-6)) for t in timesteps)
    assert early == [True] * expected + [False] * (steps - expected)
    assert abs(expected - until * steps) <= 1.5


@pytest.mark.parametrize(("name", "share"), [("sd15", 0.4), ("inpainting", 1.0)], ids=["four levels", "two"])
def test_by_default_it_is_the_composition_and_all_of_the_schedule_where_the_full_size_level_composes(name, share):
    model = build(name, VariantUNet2DConditionModel)
    model.set_options(highres_factor=2.0)
    early = []
    for t in torch.arange(999, -1, -1):
        model._states.observe(t)
        early.append(model.active_features[0].is_early())
    assert sum(early) == 1000 * share


def test_a_run_downscales_the_steps_it_should_and_features_are_not_reused_across_the_change(tiny_pipeline):
    """With deep features cached: a step that is not downscaled computes its own."""
    unet = VariantUNet2DConditionModel.from_unet(
        tiny_pipeline.unet, highres_factor="auto", highres_until=0.5, cache_interval=100, cache_depth=1
    )
    sizes: list[int] = []
    unet.down_blocks[1].register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append((args[0] if args else kwargs["hidden_states"]).shape[-1]), with_kwargs=True
    )
    tiny_pipeline.unet = unet
    tiny_pipeline("a", num_inference_steps=8, height=128, width=128, output_type="latent")
    assert sizes[0] == 4 and sizes[-1] == 8
    unet.set_options(cache_interval=1)
    sizes.clear()
    tiny_pipeline("a", num_inference_steps=8, height=128, width=128, output_type="latent")
    assert sizes == [4] * 4 + [8] * 4


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_residuals_of_controlnet_and_adapters_are_resized_with_the_features(plain, block, factor):
    """A control of constant planes is the same at every size: it is as if the skip connections had another bias."""
    model = variant(plain, highres_factor=factor, highres_block=block)
    flat = {
        name: [plane(r) for r in value] if isinstance(value, list) else plane(value)
        for name, value in control(plain).items()
    }
    out = call(model, **flat)
    left = [residual[:, :, :1, :1] for residual in flat["down_block_additional_residuals"]]

    def add(block: Any, args: Any, kwargs: Any) -> Any:
        skips = kwargs["res_hidden_states_tuple"]
        planes = [left.pop() for _ in skips][::-1]
        return args, {**kwargs, "res_hidden_states_tuple": tuple(s + p for s, p in zip(skips, planes, strict=True))}

    for up in model.up_blocks:
        up.register_forward_pre_hook(add, with_kwargs=True)
    middle = flat["mid_block_additional_residual"][:, :, :1, :1]
    model.mid_block.register_forward_hook(lambda _, __, x: x + middle)
    torch.testing.assert_close(call(model), out, rtol=1e-4, atol=1e-4)


def plane(residual: torch.Tensor) -> torch.Tensor:
    return residual.mean((2, 3), keepdim=True).expand_as(residual)


@pytest.mark.parametrize("block", [0, 1])
def test_the_residuals_of_t2i_adapters_are_resized_too(plain, block):
    model = variant(plain, highres_factor=2, highres_block=block)
    adapter = [draw(2, *shape) for shape in adapter_shapes(plain)]
    out = call(model, down_intrablock_additional_residuals=list(adapter))
    assert out.shape == (2, 4, 16, 16) and not torch.equal(out, call(model))
    assert torch.equal(out, call(model, down_block_additional_residuals=list(adapter)))  # the older way to pass them


def adapter_shapes(plain: Any) -> list[tuple[int, int, int]]:
    side, shapes = 16, []
    for i, block in enumerate(plain.down_blocks):
        last = i == len(plain.down_blocks) - 1
        attends = getattr(block, "has_cross_attention", False)
        after = side if last or attends else side // 2  # a block without attention gets it after its downsampler
        shapes.append((block.resnets[-1].out_channels, after, after))
        side = side if last else side // 2
    return shapes


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionControlNetPipeline",
    ],
)
def test_standard_pipelines(name):
    entry = ZOO[name]
    pipe = entry.build()
    exact = entry.run(pipe, 3, 0)
    plain, pipe.unet = pipe.unet, HighResUNet2DConditionModel.from_unet(pipe.unet, highres_factor=2, highres_until=1.0)
    large = entry.run(pipe, 3, 0)
    assert large.shape == exact.shape and not torch.equal(large, exact)
    assert torch.equal(entry.run(pipe, 3, 0), large)
    pipe.unet = plain
    assert torch.equal(entry.run(pipe, 3, 0), exact)


def test_saved_options_come_back(plain, tmp_path):
    model = HighResUNet2DConditionModel.from_unet(plain, highres_until=0.3)
    model.save_pretrained(tmp_path)
    again = HighResUNet2DConditionModel.from_pretrained(tmp_path)
    assert again.options == model.options
    assert (again.options["highres_factor"], again.options["tile_size"]) == ("auto", "auto")
    sample = draw(2, 4, 32, 32)
    assert torch.equal(call(again, sample=sample), call(model, sample=sample))


def test_bfloat16_and_gradients():
    model = variant(build("sd15"), highres_factor=1.5).to(torch.bfloat16).train()
    cast = {name: value.bfloat16() if torch.is_tensor(value) else value for name, value in inputs(model).items()}
    out = model(**{**cast, "timestep": 900}).sample
    out.square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"highres_factor": "big"}, "'auto' or a number, got"),
        ({"highres_factor": 0.5}, "from 1 to 8"),
        ({"highres_factor": 2, "highres_until": 1.5}, "from 0 to 1"),
        ({"highres_factor": 2, "highres_block": 2}, "one of 0, 1 in this model"),
        ({"highres_factor": 2, "highres_block": -1}, "one of 0, 1 in this model"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build("sdxl", VariantUNet2DConditionModel, **options)


def test_models_that_cannot_say_so():
    with pytest.raises(InputError, match="sample_size"):
        build("sd15", VariantUNet2DConditionModel, sample_size=None, highres_factor="auto")
    with pytest.raises(InputError, match="no down block has a downsampler"):
        one = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
        build("inpainting", VariantUNet2DConditionModel, block_out_channels=[8], highres_factor=2, **one)


def test_sizes():
    assert shrunk((64, 96), 1.5) == (43, 64)
    assert shrunk((1, 3), 8) == (1, 1)
    assert sorted(pairs(build("sd15"))) == [0, 1, 2]
    assert BASE["sample_size"] == 8
