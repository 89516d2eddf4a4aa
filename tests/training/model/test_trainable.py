"""Models that can be trained, and what is said of those that cannot."""

import json
import shutil

import pytest
import torch

from sd_ext.errors import ModelError
from sd_ext.training.model.pipeline import make_pipeline
from sd_ext.training.model.trainable import find_trainable


@pytest.fixture
def own_model(tiny_pipeline_dir, tmp_path):
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "own")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_one_that_can_be_trained(own_model, tmp_path):
    files = find_trainable(str(own_model))
    assert (files.name, files.family, files.text_parts) == (str(own_model), "sd15", ("text_encoder",))
    (own_model / "safety_checker").mkdir()  # what training does not use may be as it is
    edit(own_model / "model_index.json", safety_checker=["diffusers", "StableDiffusionSafetyChecker"])
    (own_model / "safety_checker" / "pytorch_model.bin").write_bytes(b"a pickle")
    assert find_trainable(str(own_model)).load("unet").dtype == torch.float32
    assert find_trainable("embedded").family == "sd15"


def test_pickles_and_other_variants_are_named(own_model):
    weights = own_model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    with pytest.raises(ModelError, match=r"unet holds no weights as safetensors; there is .*fp16.*: give its variant"):
        find_trainable(str(own_model))
    torch.save({}, own_model / "unet" / "diffusion_pytorch_model.bin")
    weights.with_suffix(".fp16.safetensors").unlink()
    with pytest.raises(ModelError, match=r"unet holds .*pickle"):
        find_trainable(str(own_model))


def test_models_that_cannot_be_trained_are_named(own_model, tmp_path):
    def refused(match, model=own_model):
        with pytest.raises(ModelError, match=match):
            find_trainable(str(model))

    (tmp_path / "model.ckpt").write_bytes(b"a pickle")
    refused("model.ckpt is a pickle, which can run any code", tmp_path / "model.ckpt")
    refused("no such model folder", tmp_path / "nowhere")
    refused(r"no model_index\.json", own_model / "unet")
    edit(own_model / "unet" / "config.json", in_channels=9)
    refused("takes 9 channels, not the latent's 4")
    edit(own_model / "unet" / "config.json", _class_name="UNetMotionModel")
    refused("is a UNetMotionModel; Stable Diffusion 1.x, 2.x and SDXL")
    (own_model / "unet" / "config.json").write_text("{")
    refused("config.json is not valid JSON")
    index = own_model / "model_index.json"
    edit(index, unet=[None, None], _class_name="FluxPipeline")
    refused("is a FluxPipeline without unet, vae and text_encoder")
    for damaged in ("{", "[]", '{"unet": []}', '{"unet": ["diffusers"]}'):
        index.write_text(damaged)
        refused("not valid JSON|must be an object|without unet")


def test_a_pipeline_keeps_what_its_base_makes_of_no_negative_prompt(tiny_sdxl_dir, tmp_path):
    model = shutil.copytree(tiny_sdxl_dir, tmp_path / "sdxl")
    index = model / "model_index.json"
    for zeros in (True, False):
        edit(index, force_zeros_for_empty_prompt=zeros)
        files = find_trainable(str(model))
        pipe = make_pipeline(files.load("vae"), files.load("unet"), files.noise(), None, files)
        assert pipe.config.force_zeros_for_empty_prompt is zeros
    edit(index, force_zeros_for_empty_prompt="no")
    with pytest.raises(ModelError, match="force_zeros_for_empty_prompt"):
        find_trainable(str(model))
