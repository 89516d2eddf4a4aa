"""Names between formats, for every module that a LoRA can have, at full size."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from torch import nn

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.lora import Adapter, Lora, ModuleName, read_lora
from sd_ext.lora.formats.diffusers import tensors_of as diffusers_tensors
from sd_ext.lora.formats.kohya import tensors_of as kohya_tensors
from sd_ext.lora.formats.names import from_kohya, to_kohya
from sd_ext.lora.weights import ModelWeights, check_fit

from .. import adapters, models


@functools.cache
def full_lora(shape: str) -> tuple[ModelWeights, Lora]:
    """A LoRA of rank 1 on every linear layer and convolution of the full models."""
    base = ModelWeights(models.full_models(shape))
    made = {}
    for module, size in base.shapes().items():
        ones = [1] * (len(size) - 2)
        made[module] = Adapter("lora", {"down": torch.ones(1, *size[1:]), "up": torch.ones(size[0], 1, *ones)}, 0.5)
    return base, Lora(made, base=shape)


@pytest.mark.parametrize("shape", models.SHAPES)
def test_every_module_of_the_full_models_survives_both_formats(shape):
    base, lora = full_lora(shape)
    linear = {"sd15": 72 + 184, "sd21": 6 * 23 + 184 + 32, "sdxl": 72 + 6 * 32 + 1 + 743}[shape]
    convolutions = {"sd15": 98, "sd21": 66, "sdxl": 51}[shape]
    kinds = [type(base.modules[module]) for module in lora.adapters]
    assert (kinds.count(nn.Linear), kinds.count(nn.Conv2d)) == (linear, convolutions)
    for tensors in (kohya_tensors(lora), diffusers_tensors(lora)):
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
                    assert to_kohya(ours, shape == "sdxl") == adapters.kohya_name(shape, part, path)


def test_sdxls_blocks_are_where_diffusers_sees_them():
    _, lora = full_lora("sdxl")
    blocks = [m for m in lora.adapters if m.part == "unet" and m.path.split("_")[0] in ("down", "mid", "up")]
    originals = {f"{to_kohya(module, True)}.lora_down.weight": module for module in blocks}
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
    assert renamed == {f"{to_kohya(module, False)}.lora_down.weight" for module in blocks}


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
        assert from_kohya(name) == ("unet", module)
        assert to_kohya(ModuleName("unet", module), True) == name
    assert from_kohya("lora_te2_text_model_encoder_layers_31_mlp_fc2") == (
        "text_encoder_2",
        "encoder.layers.31.mlp.fc2",
    )


def test_sd1_files_in_the_original_naming_are_read_too():
    assert from_kohya("lora_unet_output_blocks_2_1_conv") == ("unet", "up_blocks.0.upsamplers.0.conv")
    assert from_kohya("lora_unet_input_blocks_11_0_in_layers_2") == ("unet", "down_blocks.3.resnets.1.conv1")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lora_unet_down_blocks_0_atentions_0_proj_in", "attentions"),
        ("lora_te_text_model_encoder_layers_0_self_attn_qq_proj", "q_proj"),
        ("lora_une_conv_in", "lora_unet_"),
    ],
)
def test_unknown_names_come_with_near_ones(name, near):
    with pytest.raises(UnknownNameError) as caught:
        from_kohya(name)
    assert near in str(caught.value)


def test_what_the_original_unet_lacks_is_said():
    for path in ("down_blocks.0.motion", "down_blocks.0.resnets.0.conv3", "class_embedding.linear_1"):
        with pytest.raises(InputError, match="original U-Net has no module"):
            to_kohya(ModuleName("unet", path), True)
    for name in ("lora_unet_input_blocks_1_0_to_q", "lora_unet_out_1"):
        with pytest.raises(InputError, match="original U-Net"):
            from_kohya(name)
    with pytest.raises(InputError, match="only SDXL"):
        to_kohya(ModuleName("text_encoder_2", "encoder.layers.0.mlp.fc1"), False)


def test_a_base_that_cannot_be_told_is_asked_for():
    factors = {"down": torch.ones(1, 4), "up": torch.ones(4, 1)}
    lora = Lora({ModuleName("text_encoder", "encoder.layers.0.mlp.fc1"): Adapter("lora", factors, 1.0)})
    with pytest.raises(InputError, match="sd15, sd21 or sdxl"):
        kohya_tensors(lora)
