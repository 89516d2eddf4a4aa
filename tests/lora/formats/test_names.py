"""Names between formats, for every module that a LoRA can have, at full size."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.lora import Adapter, Lora, ModuleName, read_lora
from sd_ext.lora.formats.bases import decide_base
from sd_ext.lora.formats.diffusers import tensors_of as diffusers_tensors
from sd_ext.lora.formats.kohya import tensors_of as kohya_tensors
from sd_ext.lora.formats.names import beginnings, find_module, index, to_kohya, to_text_model
from sd_ext.lora.weights import ModelWeights, check_fit, is_matrix
from sd_ext.models.original.families import families
from sd_ext.models.original.modules import has_bias, modules, original_names

from ...few import few
from .. import adapters, models


@functools.cache
def full_lora(shape: str) -> tuple[ModelWeights, Lora]:
    """A LoRA of rank 1 on every linear layer and convolution of the full models."""
    base = ModelWeights(models.full_models(shape))
    made = {}
    for module, size in base.shapes().items():
        if not is_matrix(module, size) or module.path.endswith(".bias"):
            continue
        ones = [1] * (len(size) - 2)
        made[module] = Adapter("lora", {"down": torch.ones(1, *size[1:]), "up": torch.ones(size[0], 1, *ones)}, 0.5)
    return base, Lora(made, base=shape)


@pytest.mark.parametrize("shape", few(models.SHAPES, lambda shape: shape == "sdxl"))
def test_every_module_of_the_full_models_survives_both_formats(shape):
    base, lora = full_lora(shape)
    linear = {"sd15": 72 + 184, "sd21": 6 * 23 + 184 + 32, "sdxl": 72 + 6 * 32 + 1 + 743}[shape]
    convolutions = {"sd15": 98, "sd21": 66, "sdxl": 51}[shape]
    dimensions = [len(base.shapes()[module]) for module in lora.adapters]
    assert (dimensions.count(2), dimensions.count(4)) == (linear, convolutions)
    for tensors in (dict(kohya_tensors(lora)), dict(diffusers_tensors(lora))):
        again = read_lora(tensors)
        assert again.adapters.keys() == lora.adapters.keys()
        assert again.base == shape
        check_fit(base.shapes(), again.adapters.items())


@pytest.mark.parametrize("shape", models.SHAPES)
def test_kohyas_names_are_those_made_from_the_models_side(shape):
    models_ = models.full_models(shape)
    for part, model in models_.items():
        for path, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                ours = ModuleName(part, path.removeprefix("text_model."))
                if "text_projection" not in path:
                    assert to_kohya(ours, shape) == adapters.kohya_name(shape, part, path)


@pytest.mark.parametrize("shape", models.SHAPES)
def test_the_lists_are_the_models_own(shape):
    for part, model in models.full_models(shape).items():
        kinds = {nn.Linear: "linear", nn.Conv2d: "conv", nn.GroupNorm: "norm", nn.LayerNorm: "norm"}
        theirs = {
            path.removeprefix("text_model."): (
                kinds.get(type(module), "embedding"),
                "bias" in dict(module.named_parameters()),
            )
            for path, module in model.named_modules()
            if next(module.parameters(recurse=False), None) is not None
        }
        listed = {
            path: kind for path, kind in modules(families()[shape], part) if shape != "sd21" or "layers.23." not in path
        }
        assert listed == {path: kind for path, (kind, _) in theirs.items()}
        for path, (kind, biased) in theirs.items():
            assert has_bias(path) == biased or kind == "embedding", path


def test_sdxls_blocks_are_where_diffusers_sees_them():
    _, lora = full_lora("sdxl")
    blocks = [m for m in lora.adapters if m.part == "unet" and m.path.split("_")[0] in ("down", "mid", "up")]
    originals = {f"{to_kohya(module, 'sdxl')}.lora_down.weight": module for module in blocks}
    # Diffusers moves the blocks here, and renames them and resnets' insides later.
    later = {"in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj", "_op": "_conv",
             "skip_connection": "conv_shortcut", "input_blocks": "down_blocks", "middle_block": "mid_block",
             "output_blocks": "up_blocks"}  # fmt: skip
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict.fromkeys(originals, 0), SimpleNamespace(layers_per_block=2))
    renamed = set()
    for key in mapped:
        for old, new in later.items():
            key = key.replace(old, new)
        renamed.add(key)
    assert renamed == {f"{to_kohya(module, 'sd15')}.lora_down.weight" for module in blocks}


def module_of(name, part=None):
    return find_module(name, part).module


def test_names_written_down_from_files_of_kohyas_trainer():
    for name, module in {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0."
        "attn1.to_q",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.9."
        "ff.net.0.proj",
        "lora_unet_output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
        "lora_unet_output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "lora_unet_input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    }.items():
        assert module_of(name) == ("unet", module)
        assert to_kohya(ModuleName("unet", module), "sdxl") == name
    assert module_of("lora_te2_text_model_encoder_layers_31_mlp_fc2") == ("text_encoder_2", "encoder.layers.31.mlp.fc2")


def test_names_written_down_from_files_of_other_programs():
    fc1, attention = "encoder.layers.3.mlp.fc1", "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    for name, part, path in [
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q", "unet", f"{attention}.to_q"),  # ComfyUI
        ("unet.input_blocks.4.1.transformer_blocks.0.attn1.to_q", "unet", f"{attention}.to_q"),  # OneTrainer
        ("model.diffusion_model.input_blocks.11.0.in_layers.2", "unet", "down_blocks.3.resnets.1.conv1"),
        ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0", "unet", f"{attention}.to_out.0"),
        ("oft_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "unet", f"{attention}.to_q"),  # kohya
        (f"unet.base_model.model.{attention}.to_v", "unet", f"{attention}.to_v"),
        (f"base_model.model.unet.{attention}.to_v", "unet", f"{attention}.to_v"),
        (f"unet.{attention}.processor.to_out", "unet", f"{attention}.to_out.0"),
        ("lora_unet_output_blocks_2_1_conv", "unet", "up_blocks.0.upsamplers.0.conv"),  # SD 1.x in original names
        ("lora_unet_output_blocks_2_2_conv", "unet", "up_blocks.0.upsamplers.0.conv"),  # SDXL's
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1", "text_encoder", fc1),
        ("clip_g.transformer.text_model.encoder.layers.3.mlp.fc1", "text_encoder_2", fc1),
        ("conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_fc", "text_encoder_2", fc1),
        ("cond_stage_model.model.transformer.resblocks.3.ln_1", "text_encoder", "encoder.layers.3.layer_norm1"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_out", "text_encoder", f"{LAYER}.out_proj"),
        ("lora_te2_text_projection", "text_encoder_2", "text_projection"),
    ]:  # fmt: skip
        assert module_of(name) == (part, path), name


@functools.cache
def every_module():
    """(family, part, path, original name) of every module of the three families and the refiner."""
    return [
        (family, part, path, original_names(family, part)[path])
        for family in families().values()
        for part in ("unet", *family.text)
        for path, _ in modules(family, part)
    ]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_every_spelling_of_every_module_is_understood(data):
    """The resolver inverts: any layout, any beginning that fits, flat or dotted, with what other layers put before."""
    family, part, path, original = data.draw(st.sampled_from(every_module()))
    own = data.draw(st.sampled_from([path, original, *([to_text_model(path)] if part != "unet" else [])]))
    fitting = [known for known, of in beginnings().items() if of in (part, "") and known[0] != "_"]
    start = data.draw(st.sampled_from(fitting))
    outer = data.draw(st.sampled_from(["", "base_model.model.", "module.", "lora_"]))
    dotted = data.draw(st.booleans())
    name = f"{outer}{start}{own}" if not dotted else f"{outer}{start.rstrip('_').replace('_', '.')}.{own}"
    place = find_module(name if dotted else name.replace(".", "_"), None if beginnings()[start] else part)
    assert place.module == (part, path)
    assert family.name in place.families


def test_no_name_means_two_modules_of_one_part():
    for name, places in index().items():
        assert len({place.module.part for place in places}) == len(places), name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lora_unet_down_blocks_0_atentions_0_proj_in", "lora_unet_down_blocks_0_attentions_0_proj_in"),
        ("lora_te_text_model_encoder_layers_0_self_attn_qq_proj", "self_attn_q_proj"),
        ("lora_une_conv_in", "lora_unet_"),
        ("unet.down_blocks.0.atentions.0.proj_in", "unet.down_blocks.0.attentions.0.proj_in"),
    ],
)
def test_unknown_names_come_with_near_ones(name, near):
    with pytest.raises(UnknownNameError) as caught:
        find_module(name)
    assert near in str(caught.value)


def test_what_the_original_unet_lacks_is_said():
    for path in ("down_blocks.0.motion", "down_blocks.0.resnets.0.conv3", "down_blocks.0.attentions.0.proj_in"):
        with pytest.raises(InputError, match="original U-Net of Stable Diffusion XL has no module"):
            to_kohya(ModuleName("unet", path), "sdxl")
    for name in ("lora_unet_input_blocks_1_0_to_q", "lora_unet_out_1"):
        with pytest.raises(UnknownNameError, match="unknown module"):
            find_module(name)
    with pytest.raises(InputError, match="only SDXL"):
        to_kohya(ModuleName("text_encoder_2", "encoder.layers.0.mlp.fc1"), "sd15")


def wide(module, width, out=8):
    return {module: Adapter("lora", {"down": torch.ones(1, width), "up": torch.ones(out, 1)}, 1.0)}


LAYER = "encoder.layers.0.self_attn"
CROSS = "transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("path", "width", "header", "base", "told"),
    [
        (f"mid_block.attentions.0.{CROSS}", 768, {}, "sd15", False),
        (f"mid_block.attentions.0.{CROSS}", 1024, {}, "sd21", False),
        (f"mid_block.attentions.0.{CROSS}", 1280, {}, "sdxl-refiner", False),
        (f"mid_block.attentions.0.{CROSS}", 2048, {"ss_base_model_version": "sd_v1"}, "sdxl", True),
        (f"down_blocks.0.attentions.0.{CROSS}", 9, {"ss_base_model_version": "sdxl_base_v1-0"}, "sd15", True),
        (f"down_blocks.0.attentions.0.{CROSS}", 9, {"ss_v2": "True"}, "sd21", False),
        ("mid_block.attentions.0.transformer_blocks.9.attn1.to_q", 9, {"ss_v2": "True"}, "sdxl", True),
        ("mid_block.resnets.0.time_emb_proj", 9, {}, None, False),
        ("mid_block.resnets.0.time_emb_proj", 9, {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl", False),
    ],
)  # fmt: skip
def test_the_modules_decide_and_a_header_that_disagrees_is_told(path, width, header, base, told):
    decided = decide_base(wide(ModuleName("unet", path), width), header=header)
    assert decided.base == base
    assert bool(decided.notes) == told
    if told:
        assert "its header says Stable Diffusion" in decided.notes[0]


def test_a_base_that_cannot_be_told_is_asked_for():
    factors = {"down": torch.ones(1, 4), "up": torch.ones(4, 1)}
    lora = Lora({ModuleName("text_encoder", "encoder.layers.0.mlp.fc1"): Adapter("lora", factors, 1.0)})
    with pytest.raises(InputError, match="sd15, sd21, sdxl"):
        dict(kohya_tensors(lora))
