from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import sd_ext
from sd_ext.seams.diffusers import attention, dispatch, modular, pipelines, records, unets

from ..unets.inside.test_views import ip_adapter
from ..unets.tiny import BASE
from .probe import call, probe, tiny_unet

# ---- records ---------------------------------------------------------------------------------------------------------


@probe("diffusers.record_as_ours")
def pipelines_record_our_name_and_find_it(tiny_pipeline: Any, tmp_path: Path) -> None:
    tiny_pipeline.scheduler = sd_ext.make_scheduler("dpm++ 2m", tiny_pipeline.scheduler.config)
    tiny_pipeline.unet = sd_ext.CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet)
    tiny_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["sd_ext", "DPMSolverMultistepScheduler"]
    assert index["unet"] == ["sd_ext", "CachedUNet2DConditionModel"]
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is sd_ext.DPMSolverMultistepScheduler
    assert type(loaded.unet) is sd_ext.CachedUNet2DConditionModel


@probe("diffusers.compatibles")
def configs_keep_what_diffusers_schedulers_know() -> None:
    foreign = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True)
    ours = sd_ext.DPMSolverMultistepScheduler.from_config(foreign.config)
    back = diffusers.PNDMScheduler.from_config(ours.config)
    assert back.config["skip_prk_steps"] is True
    assert back.config["set_alpha_to_one"] is True
    assert diffusers.PNDMScheduler in ours.compatibles


@probe("diffusers.SiblingOptions")
def configs_keep_what_siblings_know() -> None:
    known, lcm = sd_ext.DPMSolverMultistepScheduler._options, sd_ext.LCMScheduler._options
    alone = next(name for name in known if name not in lcm)
    init, unknown, rest = sd_ext.LCMScheduler.extract_init_dict({alone: known[alone], "beta_start": 0.1, "odd": 1})
    assert init["beta_start"] == 0.1
    assert unknown == {"odd": 1}
    assert rest[alone] == known[alone]
    other = sd_ext.LCMScheduler.from_config({alone: known[alone]})
    assert other.config[alone] == known[alone]


@probe("diffusers.bare_constructor")
def constructors_come_without_their_config() -> None:
    model = diffusers.UNet2DConditionModel.__new__(diffusers.UNet2DConditionModel)
    with pytest.raises(AttributeError):  # `register_to_config` would have made one
        records.bare_constructor(diffusers.UNet2DConditionModel)(model, **BASE)
        _ = model.config["sample_size"]
    assert records.bare_constructor(diffusers.UNet2DConditionModel) is not diffusers.UNet2DConditionModel.__init__


@probe("diffusers.write_options")
def what_is_written_counts_as_chosen() -> None:
    plain = sd_ext.VariantUNet2DConditionModel.from_unet(tiny_unet())
    assert plain.config["token_merge_ratio"] == 0  # the default there, and not that of the class that loads it
    other = sd_ext.TokenReducedUNet2DConditionModel.from_config(plain.config)
    assert other.config["token_merge_ratio"] == 0
    assert sd_ext.TokenReducedUNet2DConditionModel.from_config(tiny_unet().config).config["token_merge_ratio"] == 0.5


@probe("diffusers.expand_strengths_as")
def strengths_by_block_reach_a_variant() -> None:
    from peft import LoraConfig

    model = sd_ext.VariantUNet2DConditionModel.from_unet(tiny_unet())
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]), "one")
    model.set_adapters("one", {"down": 0.25, "mid": 0.5, "up": 0.75})
    scales = {name.split("_")[0]: m.scaling["one"] for name, m in model.named_modules() if hasattr(m, "scaling")}
    assert scales == {"down": 0.25, "mid": 0.5, "up": 0.75}


# ---- U-Nets ----------------------------------------------------------------------------------------------------------


@probe("diffusers.has_skip_for_each_layer")
def blocks_with_a_skip_for_each_layer_are_known() -> None:
    simple = {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    }
    for model in (tiny_unet(), tiny_unet(**simple)):
        assert unets.has_skip_for_each_layer(model)
        skips = 1 + sum(len(b.resnets) + (b.downsamplers is not None) for b in model.down_blocks)
        assert skips == sum(len(block.resnets) for block in model.up_blocks)


@probe("diffusers.has_cross_attention")
def the_text_goes_where_a_block_says_so() -> None:
    model, got = tiny_unet(), {}
    for i, block in enumerate(model.down_blocks):
        block.register_forward_pre_hook(
            lambda _, __, kwargs, i=i: got.update({i: "encoder_hidden_states" in kwargs}), with_kwargs=True
        )
    call(model)
    assert got == {i: unets.has_cross_attention(block) for i, block in enumerate(model.down_blocks)}
    assert got == {0: True, 1: False}
    standing = nn.Identity()
    unets.say_whether_cross(standing, model.down_blocks[0])
    assert unets.has_cross_attention(standing)


@probe("diffusers.attends_over_picture")
def transformers_over_the_picture_are_known() -> None:
    found = [name for name, module in tiny_unet().named_modules() if unets.attends_over_picture(module)]
    assert {name.split(".attentions")[0] for name in found} == {"down_blocks.0", "mid_block", "up_blocks.1"}


@probe("diffusers.is_transformer_block")
def transformer_blocks_have_their_parts() -> None:
    found = [module for module in tiny_unet().modules() if unets.is_transformer_block(module)]
    assert len(found) == 4
    assert all(isinstance(getattr(block, part), nn.Module) for block in found for part in ("attn1", "attn2", "ff"))


@probe("diffusers.set_checkpointing")
def chosen_blocks_are_computed_again() -> None:
    model, runs = tiny_unet().train(), []
    model.enable_gradient_checkpointing()
    assert {"down_blocks.0", "mid_block", "up_blocks.1"} <= set(unets.checkpointable(model))
    unets.set_checkpointing(model, ["down_blocks.0"])
    for i in (0, 1):
        model.down_blocks[i].resnets[0].register_forward_pre_hook(lambda *_, i=i: runs.append(i))
    call(model).sum().backward()
    assert sorted(runs) == [0, 0, 1]


@probe("diffusers.is_downsampler", "diffusers.downsampled")
def downsamplers_halve_sides_as_we_reckon() -> None:
    from diffusers.models.downsampling import Downsample2D

    (own,) = (module for module in tiny_unet().modules() if unets.is_downsampler(module))
    for sampler in (own, Downsample2D(8, use_conv=True, padding=0), Downsample2D(8, use_conv=False)):
        for side in (4, 7, 8, 9):
            assert sampler(torch.ones(1, 8, side, 4)).shape[-2] == unets.downsampled(side, sampler)


@probe("diffusers.is_upsampler")
def upsamplers_come_to_the_size_they_are_told() -> None:
    (own,) = (module for module in tiny_unet().modules() if unets.is_upsampler(module))
    assert own(*unets.with_output_size((torch.ones(1, 16, 3, 3),), (5, 7))).shape == (1, 16, 5, 7)


@probe("diffusers.freeu_factors")
def freeu_is_found() -> None:
    model, factors = tiny_unet(), {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}
    assert unets.freeu_factors(model) == {}
    model.enable_freeu(**factors)
    assert unets.freeu_factors(model) == factors
    model.disable_freeu()
    assert unets.freeu_factors(model) == {}


@probe("diffusers.image_scales")
def scales_of_ip_adapters_are_seen(tiny_pipeline: Any) -> None:
    tiny_pipeline.unet = tiny_unet()
    assert unets.image_scales(tiny_pipeline.unet) == ()
    ip_adapter(tiny_pipeline.unet)
    before = unets.image_scales(tiny_pipeline.unet)
    assert len(before) == 4
    tiny_pipeline.set_ip_adapter_scale(0.25)
    assert all(a != b for a, b in zip(before, unets.image_scales(tiny_pipeline.unet), strict=True))


@probe("diffusers.is_offloaded_in_groups")
def offloading_in_groups_is_seen() -> None:
    model = tiny_unet()
    assert not any(map(unets.is_offloaded_in_groups, model.modules()))
    device = torch.device("cpu")
    model.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")
    assert any(map(unets.is_offloaded_in_groups, model.modules()))


# ---- attention -------------------------------------------------------------------------------------------------------


@probe("diffusers.attention_layers")
def layers_give_what_a_processor_reads() -> None:
    model = tiny_unet()
    layers = attention.attention_layers(model)
    assert len(layers) == 8
    assert sum(map(attention.is_cross, layers.values())) == 4
    layer = layers["down_blocks.0.attentions.0.transformer_blocks.0.attn1"]
    x = torch.rand(2, 6, 8)
    tokens = attention.tokens_of(layer, x, None)
    query, key, value = attention.by_heads(layer, layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
    assert query.shape[2:] == attention.size_of(layer) == (4, 2)
    assert not attention.upcasts(layer)
    mask = torch.zeros(2, 6)
    mask[:, -1] = -1e4
    bias = attention.bias_of(layer, mask, tokens)
    assert bias is not None
    weights = (query.transpose(1, 2) @ key.transpose(1, 2).mT * layer.scale + bias).softmax(-1)
    mixed = (weights @ value.transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.output_of(layer, mixed, x), layer(x, attention_mask=mask))


@probe("diffusers.processor_kind", "diffusers.make_processor")
def processors_are_told_and_made() -> None:
    layer = next(iter(attention.attention_layers(tiny_unet()).values()))
    assert attention.processor_kind(layer) == attention.default_kind(layer) == "sdpa"
    for kind in ("plain", "sdpa"):
        layer.set_processor(attention.make_processor(kind))
        assert attention.processor_kind(layer) == kind
    from diffusers.models.attention_processor import AttnProcessor2_0

    layer.set_processor(type("Derived", (AttnProcessor2_0,), {})())
    assert attention.processor_kind(layer) is None


@probe("diffusers.backend_names", "diffusers.prepare_backend", "diffusers.dispatch")
def kernels_compute_by_name() -> None:
    assert {"native", "_native_math", "flash", "sage", "xformers"} <= set(dispatch.backend_names())
    dispatch.prepare_backend("_native_math")
    query, key, value = (torch.rand(1, 6, 2, 4) for _ in range(3))
    weights = (query.transpose(1, 2) @ key.transpose(1, 2).mT * 0.3).softmax(-1)
    expected = (weights @ value.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(dispatch.dispatch(query, key, value, None, 0.3, "_native_math"), expected)


# ---- pipelines -------------------------------------------------------------------------------------------------------


@probe("diffusers.running_pipeline", "diffusers.count_steps", "diffusers.is_guided")
def the_pipeline_that_calls_is_found(tiny_pipeline: Any) -> None:
    seen = []

    def look(*_: Any) -> None:
        pipe = pipelines.running_pipeline()
        seen.append((pipe, pipelines.count_steps(pipe, 9), pipelines.batch_parts(pipe)))

    def done(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return tensors

    handle = tiny_pipeline.unet.register_forward_hook(look)
    try:
        for scale in (1.0, 5.0):
            options = {"num_inference_steps": 2, "guidance_scale": scale, "output_type": "latent"}
            tiny_pipeline("a", callback_on_step_end=done, **options)
    finally:
        handle.remove()
    halves = ("unconditional", "conditional")
    assert seen == [(tiny_pipeline, 2, halves[1:])] * 2 + [(tiny_pipeline, 2, halves)] * 2
    assert pipelines.can_be_guided(tiny_pipeline)
    assert pipelines.running_pipeline() is None


@probe("diffusers.has_three_branches")
def pipelines_of_three_branches_are_known() -> None:
    three = (diffusers.StableDiffusionInstructPix2PixPipeline, diffusers.StableDiffusionPAGPipeline)
    assert all(pipelines.has_three_branches(cls.__new__(cls)) for cls in three)
    two = (diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLControlNetPipeline)
    assert not any(pipelines.has_three_branches(cls.__new__(cls)) for cls in two)


@probe("diffusers.when_motion_is_added")
def networks_with_motion_are_seen() -> None:
    before, seen = vars(diffusers.UNetMotionModel)["from_unet2d"], []
    unets.when_motion_is_added(lambda unet, model: seen.append((unet, model)))
    unet = tiny_unet()
    model = diffusers.UNetMotionModel.from_unet2d(unet)
    diffusers.UNetMotionModel.from_unet2d = before
    assert seen == [(unet, model)]


# ---- Modular pipelines -----------------------------------------------------------------------------------------------


@probe(
    *("diffusers.sdxl_blocks", "diffusers.workflows_of", "diffusers.offer_workflows", "diffusers.let_be_built"),
    *("diffusers.execution_device", "diffusers.Recorded"),
)
def blocks_of_sdxl_are_where_they_were(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    blocks = modular.sdxl_blocks()
    assert issubclass(blocks.DenoiseStep, diffusers.LoopSequentialPipelineBlocks)
    assert modular.workflows_of(blocks.AutoBlocks)["text2image"] == {"prompt": True}
    from sd_ext import modular as ours

    pipe = diffusers.ModularPipeline.from_pretrained(str(tiny_pipeline_dir))
    assert (type(pipe), type(pipe.blocks)) == (ours.StableDiffusionModularPipeline, ours.StableDiffusionBlocks)
    assert modular.execution_device(pipe) == torch.device("cpu")
    assert "text2image" in pipe.blocks.available_workflows
    pipe.blocks.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "modular_config.json").read_text())
    assert saved["auto_map"] == {"ModularPipelineBlocks": "modular.StableDiffusionBlocks"}
    assert set(saved["requirements"]) == {"sd_ext"}
