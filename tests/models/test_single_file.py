"""A single file is read as the folder of the same model would be."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sd_ext.models import SingleFile, find_model
from sd_ext.models.building import check_complete
from tests.lora.models import FULL_TEXT_ENCODERS, FULL_UNETS
from tests.models import original_layout as original

FAMILIES = "sd15", "sd21", "sdxl", "sdxl-refiner"
EPSILON = {"modelspec.prediction_type": "epsilon"}


def write(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return path


def by_diffusers(tensors, model):
    """Part -> its tensors under Diffusers' names, by Diffusers' own functions."""
    from diffusers.loaders import single_file_utils as theirs

    made = {
        "unet": theirs.convert_ldm_unet_checkpoint(dict(tensors), model.config("unet")),
        "vae": theirs.convert_ldm_vae_checkpoint(dict(tensors), model.config("vae")),
    }
    for part, encoder in model.layout.text.items():
        start = encoder.beginnings[0]
        if encoder.style == "clip":
            made[part] = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
        else:
            found = theirs.convert_open_clip_checkpoint(model.without_weights(part), dict(tensors), start)
            made[part] = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_is_where_diffusers_puts_it(name, tmp_path):
    tensors = original.tensors(name)
    model = find_model(write(tmp_path / "tiny.safetensors", tensors, EPSILON))
    assert model.layout.name == name
    for part, expected in by_diffusers(tensors, model).items():
        loaded = model.load(part).state_dict()
        assert loaded
        for key, value in loaded.items():
            key = key.removeprefix("text_model.")
            assert torch.equal(value, expected[key].reshape(value.shape)), (part, key)


# As in the config files of the models on the Hub.
FULL_REFINER = {
    "block_out_channels": [384, 768, 1536, 1536],
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 4,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_full_size_has_the_published_configs_and_nothing_is_missing(name, tmp_path):
    listed = original.shapes(name, tiny=False)
    model = find_model(original.write_sparse(tmp_path / "full.safetensors", listed, metadata=EPSILON))
    published = {**FULL_UNETS, "sdxl-refiner": FULL_REFINER}[name]
    unet = model.config("unet")
    assert {key: unet[key] for key in published} == published
    assert (unet["layers_per_block"], unet["norm_num_groups"], unet["sample_size"]) == (2, 32, unet["sample_size"])
    texts = FULL_TEXT_ENCODERS.get(name, FULL_TEXT_ENCODERS["sdxl"][1:])
    for part, expected in zip(model.text_parts, texts, strict=True):
        config = model.config(part)
        assert {key: config[key] for key in expected} == expected
        assert config["hidden_act"] == ("quick_gelu" if expected["hidden_size"] == 768 else "gelu")
    vae = model.config("vae")
    assert (vae["block_out_channels"], vae["layers_per_block"]) == ([128, 256, 512, 512], 2)
    assert vae["scaling_factor"] == (0.18215 if name in ("sd15", "sd21") else 0.13025)
    for part in ("unet", "vae", *model.text_parts):
        check_complete(model, part, model.networks[part])
    assert isinstance(model, SingleFile)
    unread = {
        key.removeprefix("conditioner.embedders.1.").removeprefix("conditioner.embedders.0.") for key in model.extras
    }
    last = {key for key in listed if ".resblocks.23." in key} if name == "sd21" else set()
    assert unread == {
        "sd15": set(),
        "sd21": last | {"cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection"},
    }.get(name, {"model.logit_scale"})
