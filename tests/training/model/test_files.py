"""A model as files: found, told apart, identified, and refused where it cannot be trained."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.errors import ModelError
from sd_ext.training.model.files import find_model, find_part
from sd_ext.training.model.pipeline import make_pipeline


@pytest.fixture
def own_model(tiny_pipeline_dir, tmp_path):
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "own")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_pipeline_is_found_and_loads_part_by_part(own_model, tmp_path):
    files = find_model(str(own_model))
    assert (files.family, files.base, files.text_parts) == ("sd", "sd15", ("text_encoder",))
    unet = files.load("unet", torch.bfloat16)
    assert unet.dtype == torch.bfloat16
    edit(own_model / "text_encoder" / "config.json", hidden_size=1024)
    assert find_model(str(own_model)).base == "sd21"
    run = tmp_path / "run"
    own_model.rename(tmp_path / "moved")
    run.mkdir()
    (tmp_path / "moved").rename(run / "model")  # a finished run is a model
    assert find_model(str(run)).parts["vae"] == run / "model" / "vae"
    assert find_model("embedded").family == "sd"


def test_a_digest_is_of_contents_and_of_nothing_else(own_model, tmp_path):
    parts = ("vae", "text_encoder", "tokenizer")
    before = find_model(str(own_model)).digest(*parts)
    elsewhere = shutil.copytree(own_model, tmp_path / "elsewhere")
    assert find_model(str(elsewhere)).digest(*parts) == before
    assert find_model(str(own_model)).digest("vae") != find_model(str(own_model)).digest("text_encoder")
    (elsewhere / "vae" / "notes.md").write_text("not a part of the model")
    assert find_model(str(elsewhere)).digest(*parts) == before
    for changed in ("vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        folder = shutil.copytree(own_model, tmp_path / changed.replace("/", "_"))
        edit(folder / changed, something="else")
        assert find_model(str(folder)).digest(*parts) != before
    weights = elsewhere / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name].flatten()[0] += 1e-3
    save_file(tensors, weights)
    assert find_model(str(elsewhere)).digest(*parts) != before


def test_pickles_are_never_read(own_model):
    weights = own_model / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), own_model / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match=r"unet holds no weights as safetensors; diffusion_pytorch_model.bin would"):
        find_model(str(own_model)).load("unet")


def test_models_that_cannot_be_trained_are_named(own_model, tmp_path):
    def refused(match, model=own_model):
        with pytest.raises(ModelError, match=match):
            find_model(str(model))

    refused("no pipeline folder at .*ckpt; single files must be converted", tmp_path / "model.ckpt")
    refused("no pipeline folder at", tmp_path / "nowhere")
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


def test_parts_by_themselves(own_model, tmp_path):
    vae = own_model / "vae"
    assert find_part(str(own_model), "vae") == find_part(str(vae), "vae") == vae
    with pytest.raises(ModelError, match="no model folder at"):
        find_part(str(tmp_path / "nowhere"), "vae")
    with pytest.raises(ModelError, match="holds no vae"):
        find_part(str(tmp_path), "vae")


def test_a_pipeline_keeps_what_its_base_makes_of_no_negative_prompt(tiny_sdxl_dir, tmp_path):
    model = shutil.copytree(tiny_sdxl_dir, tmp_path / "sdxl")
    index = model / "model_index.json"
    for zeros in (True, False):
        edit(index, force_zeros_for_empty_prompt=zeros)
        files = find_model(str(model))
        pipe = make_pipeline(files.load("vae"), files.load("unet"), files.noise(), None, files)
        assert pipe.config.force_zeros_for_empty_prompt is zeros
    edit(index, force_zeros_for_empty_prompt="no")
    with pytest.raises(ModelError, match="force_zeros_for_empty_prompt"):
        find_model(str(model))
