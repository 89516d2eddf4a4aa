"""The variant as a `UNet2DConditionModel`: the same numbers, the same checkpoints, the same manners."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
import threading
import types
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig

import sd_ext
from sd_ext import CachedUNet2DConditionModel, TokenReducedUNet2DConditionModel, VariantUNet2DConditionModel
from sd_ext.declared import check
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.unets.variant import DECLARED, FEATURES, OPTIONS

from .tiny import CONFIGS, FULL_SIZE, K_BLOCKS, build, control, draw, inputs


def same(one: Any, other: Any, **arguments: Any) -> bool:
    arguments = arguments or inputs(other)
    with torch.no_grad():
        return torch.equal(one(**arguments).sample, other(**arguments).sample)


# ---- neutral ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_neutral_is_the_plain_unet_to_the_last_bit(name):
    plain, variant = build(name), build(name, VariantUNet2DConditionModel)
    assert variant.describe() == "plain"
    assert variant.state_dict().keys() == plain.state_dict().keys()
    assert same(variant, plain)
    assert same(VariantUNet2DConditionModel.from_unet(plain), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_neutral_at_full_size(name):
    with torch.device("meta"):
        plain = UNet2DConditionModel(**FULL_SIZE[name]).eval()
    plain = plain.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.uniform_(-0.03, 0.03, generator=generator)
    sample, text = draw(1, plain.config.in_channels, 16, 16), draw(1, 77, plain.config.cross_attention_dim)
    given = {"sample": sample, "encoder_hidden_states": text}
    given = {key: tensor.bfloat16() for key, tensor in given.items()}
    if name == "sdxl":
        given["added_cond_kwargs"] = {"text_embeds": draw(1, 1280).bfloat16(), "time_ids": torch.ones(1, 6)}
    variant = VariantUNet2DConditionModel.from_unet(plain)
    assert same(variant, plain, **given, timestep=500)
    variant.set_options(cache_interval=2)
    assert same(variant, plain, **given, timestep=500)
    assert not same(variant, plain, **given, timestep=400)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_neutral_with_every_optional_argument(name):
    plain = build(name)
    variant = VariantUNet2DConditionModel.from_unet(plain)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    extra = {"encoder_attention_mask": mask.bool(), **control(plain)}
    assert same(variant, plain, **inputs(plain), **extra)
    adapters = [[draw(*shape) for shape in adapter_shapes(plain)] for _ in range(2)]
    outs = [
        unet(**inputs(plain), down_intrablock_additional_residuals=adapter).sample
        for unet, adapter in zip((plain, variant), adapters, strict=True)
    ]
    assert torch.equal(*outs)


def adapter_shapes(unet: Any, batch: int = 2) -> list[tuple[int, ...]]:
    """Of what a T2I-Adapter adds: the output of each down block, before its downsampler where it has attention."""
    shapes, size = [], unet.config.sample_size
    for block in unet.down_blocks:
        halved = size // 2 if block.downsamplers else size
        side = size if hasattr(block, "attentions") else halved
        shapes.append((batch, block.resnets[-1].out_channels, side, side))
        size = halved
    return shapes


def test_positional_arguments_tuples_and_odd_sizes():
    plain = build("class table")
    for options in ({}, {"cache_interval": 2}):
        variant = VariantUNet2DConditionModel.from_unet(plain, **options)
        args = (draw(2, 4, 9, 7), torch.tensor(7), draw(2, 5, 8), torch.tensor([1, 2]), None, None, {"scale": 1.0})
        with torch.no_grad():
            (tupled,) = variant(*args, return_dict=False)
            assert torch.equal(tupled, plain(*args).sample)


def test_the_gradient_is_the_plain_one_also_with_checkpointing():
    plain = build().train()
    variant = VariantUNet2DConditionModel.from_unet(copy.deepcopy(plain)).train()
    variant.enable_gradient_checkpointing()
    assert variant.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    for unet in (plain, variant):
        unet(**inputs(unet)).sample.square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), variant.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


# ---- construction ----------------------------------------------------------------------------------------------------


def test_from_unet_shares_every_tensor_and_nothing_else():
    plain = build()
    variant = CachedUNet2DConditionModel.from_unet(plain)
    ours, theirs = dict(variant.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in theirs)
    assert not {id(m) for m in variant.modules()} & {id(m) for m in plain.modules()}
    assert variant.options["cache_interval"] == 3
    assert "cache_interval" not in plain.config
    before = plain.attn_processors
    variant.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    assert plain.attn_processors == before


def test_from_unet_takes_variants_their_options_and_compiled_models():
    first = CachedUNet2DConditionModel.from_unet(build(), cache_interval=5, cache_depth=1)
    second = VariantUNet2DConditionModel.from_unet(first, cache_depth=0)
    assert type(second) is VariantUNet2DConditionModel
    assert (second.options["cache_interval"], second.options["cache_depth"]) == (5, 0)
    assert first.options["cache_depth"] == 1
    assert same(VariantUNet2DConditionModel.from_unet(torch.compile(build(), backend="eager")), build())


def test_from_unet_adds_what_its_class_switches_on():
    cached = CachedUNet2DConditionModel.from_unet(build(), cache_interval=5)
    both = TokenReducedUNet2DConditionModel.from_unet(cached)
    assert (both.options["cache_interval"], both.options["token_merge_ratio"]) == (5, 0.5)
    assert CachedUNet2DConditionModel.from_unet(both).options == both.options
    off = TokenReducedUNet2DConditionModel.from_unet(both, token_merge_ratio=0.0)
    assert TokenReducedUNet2DConditionModel.from_unet(off).options["token_merge_ratio"] == 0


def test_from_unet_keeps_peft_adapters():
    plain = build()
    plain.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    variant = VariantUNet2DConditionModel.from_unet(plain)
    for scale in (1.0, 0.3):
        assert same(variant, plain, **inputs(plain), cross_attention_kwargs={"scale": scale})
    adapted = inputs(plain)
    variant.disable_adapters()
    assert same(variant, build(), **adapted)
    assert not same(plain, build(), **adapted)


@pytest.mark.parametrize("cls", [VariantUNet2DConditionModel, CachedUNet2DConditionModel])
def test_checkpoints_load_both_ways(cls, tmp_path, caplog):
    plain = build("sdxl")
    plain.save_pretrained(tmp_path / "plain")
    variant = cls.from_pretrained(tmp_path / "plain", attention_gate=7)
    assert variant.options["attention_gate"] == 7
    assert variant.options["cache_interval"] == cls._defaults.get("cache_interval", 1)
    variant.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["_class_name"] == cls.__name__
    again = cls.from_pretrained(tmp_path / "ours")
    assert again.options == variant.options
    assert VariantUNet2DConditionModel.from_pretrained(tmp_path / "ours").options == variant.options
    back = UNet2DConditionModel.from_pretrained(tmp_path / "ours")
    assert same(back, plain)
    again.set_options(**OPTIONS)
    assert same(again, plain)


def test_from_unet_of_a_plain_model_loaded_from_our_folder_is_as_of_any_plain_one(tmp_path):
    VariantUNet2DConditionModel.from_unet(build(), highres_factor=2.0).save_pretrained(tmp_path)
    plain = UNet2DConditionModel.from_pretrained(tmp_path)
    plain.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    options = CachedUNet2DConditionModel.from_unet(plain).options
    assert (options["cache_interval"], options["highres_factor"], options["freeu_b2"]) == (3, 1.0, 1.4)


def test_options_survive_from_config():
    variant = CachedUNet2DConditionModel.from_unet(build(), cache_interval=1)
    assert CachedUNet2DConditionModel.from_config(variant.config).options["cache_interval"] == 1
    made = build("sd15", CachedUNet2DConditionModel)
    assert VariantUNet2DConditionModel.from_config(made.config).options["cache_interval"] == 3


def test_pipelines_record_the_class(tiny_pipeline, tmp_path):
    plain, run = tiny_pipeline.unet, {"prompt": "a b", "num_inference_steps": 4, "output_type": "latent"}
    tiny_pipeline.unet = CachedUNet2DConditionModel.from_unet(plain, cache_interval=2)
    tiny_pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["sd_ext", "CachedUNet2DConditionModel"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.unet) is CachedUNet2DConditionModel
    assert loaded.unet.options == tiny_pipeline.unet.options
    loaded.set_progress_bar_config(disable=True)
    pictures = [p(**run, generator=torch.Generator().manual_seed(0)).images for p in (tiny_pipeline, loaded)]
    assert torch.equal(*pictures)


def test_what_is_publishable_loads_as_the_plain_pipeline_and_keeps_its_options(tiny_pipeline, tmp_path):
    plain, theirs = tiny_pipeline.unet, tmp_path / "theirs"
    with pytest.raises(InputError, match="a UNet2DConditionModel, none of this package"):
        sd_ext.publishable(tiny_pipeline, theirs)
    tiny_pipeline.unet = CachedUNet2DConditionModel.from_unet(plain, pag_scale=2.0)
    scheduler = tiny_pipeline.scheduler
    tiny_pipeline.scheduler = sd_ext.make_scheduler("ddim", scheduler.config)
    with pytest.raises(InputError, match="the scheduler is sd_ext's DDIMScheduler"):
        sd_ext.publishable(tiny_pipeline, theirs)
    assert not theirs.exists()
    tiny_pipeline.scheduler = scheduler
    assert sd_ext.publishable(tiny_pipeline, theirs) == theirs
    assert "sd_ext" not in (theirs / "model_index.json").read_text()
    loaded = DiffusionPipeline.from_pretrained(theirs)
    assert type(loaded.unet) is UNet2DConditionModel
    assert all(torch.equal(loaded.unet.state_dict()[name], weight) for name, weight in plain.state_dict().items())
    config = json.loads((theirs / "unet" / "config.json").read_text())
    assert {name for name in config if name in OPTIONS} == {"cache_interval", "pag_scale"}
    ours = VariantUNet2DConditionModel.from_pretrained(theirs, subfolder="unet")
    assert ours.options == tiny_pipeline.unet.options
    with pytest.raises(InputError, match="theirs"):
        sd_ext.publishable(tiny_pipeline, theirs)
    tiny_pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(InputError, match="LoRA adapters"):
        sd_ext.publishable(tiny_pipeline, theirs, overwrite=True)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_other_architectures_are_refused(tmp_path):
    sizes = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    UNet2DModel(**sizes, **blocks, layers_per_block=1, attention_head_dim=4).save_pretrained(tmp_path / "unconditional")
    flux = diffusers.FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        in_channels=4,
    )
    flux.save_pretrained(tmp_path / "flux")
    for folder, name in (("unconditional", "UNet2DModel"), ("flux", "FluxTransformer2DModel")):
        with pytest.raises(InputError, match=rf"loads checkpoints of UNet2DConditionModel; this one is of {name}"):
            CachedUNet2DConditionModel.from_pretrained(tmp_path / folder)
    with pytest.raises(InputError, match="takes a UNet2DConditionModel, got FluxTransformer2DModel"):
        CachedUNet2DConditionModel.from_unet(flux)


def test_unknown_options_are_named(tmp_path):
    plain = build()
    plain.save_pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match=r"cache_intervall.*'cache_interval'"):
        CachedUNet2DConditionModel.from_pretrained(tmp_path, cache_intervall=3)
    with pytest.raises(UnknownNameError, match="did you mean 'cache_interval'"):
        CachedUNet2DConditionModel.from_unet(plain, cache_intrval=3)
    with pytest.raises(UnknownNameError, match="did you mean 'cache_depth'"):
        CachedUNet2DConditionModel.from_unet(plain).set_options(cache_deth=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"nag_tau": 1.5}, "nag_tau"),
        ({"cache_threshold": 0.2}, "cache_threshold"),
        ({"cache_schedule": "threshold"}, "cache_schedule"),
        ({"pag_interval": [0.0, 0.5]}, "pag_interval"),
    ],
)
def test_options_of_a_feature_that_is_off_are_said_to_change_nothing(options, named, caplog):
    variant = VariantUNet2DConditionModel.from_unet(build(), **options)
    assert variant.describe() == "plain"
    assert f"{named} alone changes nothing" in caplog.text
    caplog.clear()
    VariantUNet2DConditionModel.from_unet(build(), cache_interval=2, pag_scale=1.0)
    assert "alone" not in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"cache_interval": 0},
        {"cache_interval": 2.5},
        {"cache_interval": True},
        {"cache_interval": 2, "cache_depth": 4},
        {"cache_interval": 2, "cache_depth": -1},
        {"cache_interval": 2, "cache_depth": 0, "cache_layer": 3},
        {"cache_interval": 2, "cache_schedule": "sometimes"},
        {"cache_schedule": [0, 3, 2]},
        {"cache_schedule": [0, 0.5]},
        {"cache_schedule": "threshold", "cache_threshold": -1.0},
        {"cache_schedule": "threshold", "cache_threshold": "much"},
        {"attention_gate": -1},
        {"attention_gate": 0.5},
    ],
)
def test_options_that_cannot_be_are_refused_and_change_nothing(options):
    variant = VariantUNet2DConditionModel.from_unet(build(), cache_interval=4)
    before = variant.options
    with pytest.raises(InputError, match=list(options)[-1]):
        variant.set_options(**options)
    assert variant.options == before
    with pytest.raises(InputError):
        VariantUNet2DConditionModel.from_unet(build(), **options)


def test_models_that_cannot_be_cut_say_so():
    with pytest.raises(InputError, match="KCrossAttnDownBlock2D"):
        VariantUNet2DConditionModel.from_unet(build(None, **K_BLOCKS), cache_interval=2)
    with pytest.raises(InputError, match="no cross-attention"):
        VariantUNet2DConditionModel.from_unet(build("simple attention"), attention_gate=2)


# ---- manners ---------------------------------------------------------------------------------------------------------


def test_every_option_belongs_to_one_feature_and_is_described():
    assert len(OPTIONS) == sum(len(feature.options) for feature in FEATURES)
    assert all(feature.is_neutral(OPTIONS) for feature in FEATURES)
    assert all(option.help for option in DECLARED.values())
    json.dumps(OPTIONS)


EVERY: list[dict[str, Any]] = [
    {"cache_interval": 2, "attention_gate": 3},
    {"token_merge_ratio": 0.5, "tile_size": 4},
    {"highres_factor": 2.0},
    {"pag_scale": 2.0},
    {"apg_eta": 0.0},
    {"freeu_s1": 0.9, "freeu_s2": 0.2, "freeu_b1": 1.2, "freeu_b2": 1.4},
]


@pytest.mark.parametrize("options", EVERY, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("how", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))], ids=["copy", "pickle"])
def test_copies_are_whole_and_independent(how, options):
    variant = CachedUNet2DConditionModel.from_unet(build(), **{"cache_interval": 2, **options})
    run(variant)
    assert torch.equal(run(CachedUNet2DConditionModel.from_unet(variant)), run(variant))
    other = how(variant)
    assert other.options == variant.options
    assert other.conv_in.weight is not variant.conv_in.weight
    assert torch.equal(run(other), run(variant))
    other.set_options(**OPTIONS)
    assert variant.options["cache_interval"] == 2
    assert same(other, build())


def test_a_forward_that_was_replaced_is_not_taken_along():
    plain = build()
    plain.forward = plain.forward  # as accelerate leaves it when its hooks are removed
    variant = VariantUNet2DConditionModel.from_unet(plain, token_merge_ratio=0.5)
    assert not same(variant, plain)
    variant.forward = variant.forward
    assert same(copy.deepcopy(variant), variant)
    plain.forward = lambda *args, **kwargs: None
    with pytest.raises(InputError, match="forward has been replaced"):
        VariantUNet2DConditionModel.from_unet(plain)


@pytest.mark.parametrize("cls", [UNet2DConditionModel, VariantUNet2DConditionModel])
def test_unwrapped_by_accelerate_it_keeps_its_features(cls):
    from accelerate.utils import convert_outputs_to_fp32, extract_model_from_parallel

    unet = build("sd15", cls)
    unet._original_forward = unet.forward  # as `Accelerator.prepare` does
    unet.forward = types.MethodType(convert_outputs_to_fp32(unet.forward.__func__), unet)
    with pytest.raises(InputError, match="unwrap_model"):
        VariantUNet2DConditionModel.from_unet(unet)
    unet = extract_model_from_parallel(unet, keep_fp32_wrapper=False)
    variants = [VariantUNet2DConditionModel.from_unet(unet, token_merge_ratio=0.5)]
    if cls is VariantUNet2DConditionModel:
        unet.set_options(token_merge_ratio=0.5)
        variants += [unet, copy.deepcopy(unet)]
    assert not any(same(variant, build()) for variant in variants)
    parameters = [inspect.signature(each.forward).parameters for each in (variants[-1], build())]
    assert list(parameters[0]) == list(parameters[1])


def test_lists_among_options_are_each_models_own():
    names = ["mid"]
    variant = VariantUNet2DConditionModel.from_unet(build(), pag_layers=names)
    names.append("nowhere")
    for unet in (variant, VariantUNet2DConditionModel.from_unet(build()), build("sd15", VariantUNet2DConditionModel)):
        unet.options["pag_layers"].append("up_blocks.1")
    assert variant.options["pag_layers"] == ["mid", "up_blocks.1"]
    assert VariantUNet2DConditionModel.from_unet(build()).options["pag_layers"] == OPTIONS["pag_layers"] == ["mid"]


def run(unet: Any, steps: int = 5, **more: Any) -> torch.Tensor:
    """All predictions of a run over one tensor of timesteps."""
    arguments = {**inputs(unet), **more}
    with torch.no_grad():
        outs = [unet(**{**arguments, "timestep": t}).sample for t in torch.linspace(900, 100, steps)]
    return torch.stack(outs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting(dtype):
    variant = CachedUNet2DConditionModel.from_unet(build()).to(dtype)
    arguments = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in inputs(variant).items()}
    out = run(variant, **arguments)
    assert out.dtype == variant.dtype == dtype
    assert torch.isfinite(out).all()


def test_from_unet_and_offloading():
    from accelerate import cpu_offload_with_hook

    cast, offloaded, grouped = (build("inpainting") for _ in range(3))
    cast.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    assert same(VariantUNet2DConditionModel.from_unet(cast), cast)
    cpu_offload_with_hook(offloaded, "cpu")
    grouped.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    for unet in (offloaded, grouped):
        with pytest.raises(InputError, match="take it before enabling offloading"):
            VariantUNet2DConditionModel.from_unet(unet)


def test_loading_weights_and_casting_forget_the_run():
    variant = CachedUNet2DConditionModel.from_unet(build(), cache_interval=50)
    other = build(dropout=0.0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        variant(**inputs(variant, timestep=500))
        variant.load_state_dict(other.state_dict())
        assert same(variant, other, **inputs(variant, timestep=400))


@pytest.fixture
def dynamo():
    """Without anything compiled before; its counters."""
    torch._dynamo.reset()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_inside_full_and_shallow_passes_equal_eager_ones(dynamo):
    variant = CachedUNet2DConditionModel.from_unet(build("no attention"), cache_interval=2)
    eager = run(variant)
    variant.compile(backend="eager", fullgraph=True)
    assert torch.equal(run(variant), eager)
    dynamo.clear()
    assert torch.equal(run(variant), eager)
    assert not dynamo["frames"], "a second run compiles nothing"
    variant.set_options(**OPTIONS)
    assert same(variant, build("no attention"))


@pytest.mark.slow
def test_torch_compile_around_it(dynamo):
    variant = CachedUNet2DConditionModel.from_unet(build("no attention"), cache_interval=2)
    eager = run(variant)
    compiled = torch.compile(variant, backend="eager")
    dynamo.clear()
    assert torch.equal(run(compiled), eager)
    assert dynamo["stats"]["unique_graphs"] >= 2, "a full and a shallow one"


def test_neutral_compiles_in_one_graph(dynamo):
    plain = build("no attention")
    assert same(torch.compile(VariantUNet2DConditionModel.from_unet(plain), backend="eager", fullgraph=True), plain)


@pytest.mark.slow
def test_compiled_with_frozen_attention(dynamo):
    variant = CachedUNet2DConditionModel.from_unet(build("inpainting"), cache_interval=2, attention_gate=3)
    eager = run(variant)
    variant.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(variant), eager, rtol=1e-5, atol=1e-5)


def test_compile_repeated_blocks(dynamo):
    variant = CachedUNet2DConditionModel.from_unet(build("inpainting"), cache_interval=2, attention_gate=3)
    eager = run(variant)
    variant.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert torch.equal(run(variant), eager)


def test_lora_lifecycle():
    variant = CachedUNet2DConditionModel.from_unet(build(), cache_interval=50)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)

    def exact(timestep: float) -> bool:
        """The next call of the run in progress is a full pass: nothing is reused after a change of the weights."""
        reference = VariantUNet2DConditionModel.from_unet(variant, cache_interval=1)
        return same(variant, reference, **inputs(variant, timestep=timestep))

    with torch.no_grad():
        variant(**inputs(variant, timestep=900))
    assert not exact(800), "reuse changes the prediction, or this test tests nothing"
    variant.add_adapter(config, "one")
    assert exact(700)
    variant.set_adapters(["one"], [0.5])
    assert exact(600)
    variant.disable_adapters()
    assert exact(500)
    variant.enable_adapters()
    assert exact(400)
    variant.fuse_lora()
    assert exact(300)
    variant.unfuse_lora()
    assert exact(200)
    variant.delete_adapters("one")
    assert exact(100)


def test_changed_weights_forget_features_and_not_the_step():
    variant = VariantUNet2DConditionModel.from_unet(build(), pag_scale=2.0, pag_interval=[0.5, 1.0])
    for name in "ab":
        variant.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), name)
    passes = []
    variant.conv_in.register_forward_hook(lambda *_: passes.append(1))
    timesteps = torch.arange(900, -1, -100)
    for changes in ((), (5,), range(10)):
        counts = []
        for i, t in enumerate(timesteps.clone()):
            if i in changes:
                variant.set_adapters(["a", "b"], [1 - i / 10, i / 10])
            passes.clear()
            with torch.no_grad():
                variant(**inputs(variant, timestep=t))
            counts.append(len(passes))
        assert counts == [1] * 5 + [2] * 5


def test_readers_copies_and_changes_of_weights_beside_eight_that_draw():
    options = {"token_merge_ratio": 0.5, "highres_factor": 1.5, "highres_until": 1.0, "pag_scale": 2.0}
    freeu = {"freeu_s1": 0.9, "freeu_s2": 0.2, "freeu_b1": 1.2, "freeu_b2": 1.4}
    variant = VariantUNet2DConditionModel.from_unet(build(), **options, **freeu)
    variant.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "one")
    expected, done, results = run(variant), [], []

    def draws() -> None:
        results.extend(run(variant) for _ in range(2))

    def reads() -> None:
        while not done:
            processors = variant.attn_processors
            variant.set_adapters(["one"], [1.0])
            sd_ext.attention_report(variant)
            copied = copy.deepcopy(variant)
            assert processors.keys() == copied.attn_processors.keys()
            results.append(run(copied))

    drawing, reading = [threading.Thread(target=draws) for _ in range(8)], threading.Thread(target=reads)
    for thread in (*drawing, reading):
        thread.start()
    for thread in drawing:
        thread.join()
    done.append(1)
    reading.join()
    assert len(results) > 16, "the reader has failed"
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("weights", [0.5, {"down": 0.25}, {"up": {"block_1": [0.1, 0.2]}, "mid": 0.0}])
def test_lora_weights_by_block(weights):
    plain = build()
    plain.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "one")
    variant = CachedUNet2DConditionModel.from_unet(plain)
    scales = []
    for unet in (plain, variant):
        unet.set_adapters(["one"], [weights])
        scales.append([vars(module)["scaling"]["one"] for module in unet.modules() if "scaling" in vars(module)])
    assert scales[0] == scales[1]


def test_a_fallback_is_logged_once(caplog):
    variant = CachedUNet2DConditionModel.from_unet(build("inpainting"))
    with caplog.at_level(logging.WARNING, logger="sd_ext.unets"):
        for timestep in (900, 800, 700):
            variant(**inputs(variant, timestep=timestep))
    assert [r.message for r in caplog.records] == [
        "CachedUNet2DConditionModel: the cache is not used and the exact network runs: "
        "gradients are enabled (use torch.no_grad())"
    ]


def test_names():
    assert sd_ext.VariantUNet2DConditionModel.__module__ == sd_ext.CachedUNet2DConditionModel.__module__ == "sd_ext"
    assert "cache (cache_interval=3)" in build("sd15", CachedUNet2DConditionModel).describe()


# ---- types -----------------------------------------------------------------------------------------------------------

STRANGE = ["false", 1, True, 1.5, float("nan"), None, [], [1, "x"], ["mid"], {}, b"x"]


def test_values_of_other_types_are_refused_by_name():
    """Whether the feature is on or not: what is written into a config is of the declared type."""
    variant = VariantUNet2DConditionModel.from_unet(build())
    for name, option in DECLARED.items():
        check(option.neutral, option.kind, name)
        option.check(name, option.neutral)
        wrong = [value for value in STRANGE if not fits(value, option.kind)]
        assert len(wrong) > 5
        for value in wrong:
            with pytest.raises(InputError, match=f"^VariantUNet2DConditionModel: {name}.* must be .*, got "):
                variant.set_options(**{name: value})
    assert variant.describe() == "plain"


def fits(value, kind):
    try:
        check(value, kind, "")
    except InputError:
        return False
    return True


def test_types_are_checked_where_a_folder_is_loaded(tmp_path):
    CachedUNet2DConditionModel.from_unet(build()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong, words in (({"cache_interval": "3"}, "cache_interval must be a whole number, got '3'"),
                         ({"tile_shift": "false"}, "tile_shift must be true or false, got 'false'")):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(InputError, match=words):
            CachedUNet2DConditionModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 9999)
    with pytest.raises(InputError, match=r"config\.json is nested"):
        CachedUNet2DConditionModel.from_pretrained(tmp_path)
