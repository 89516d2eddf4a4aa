from __future__ import annotations

import json
import shutil

import pytest
import torch

from sd_ext.errors import ModelError
from sd_ext.models import find_model
from sd_ext.models.pipeline import load_pipeline


@pytest.fixture
def copy(tiny_pipeline_dir, tmp_path):
    """A pipeline folder to spoil."""
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline")


def load(folder):
    return load_pipeline(find_model(str(folder)), torch.device("cpu"), torch.float32)


def test_a_good_folder_is_found_and_loaded(copy):
    find_model(str(copy)).check()
    assert load(copy).unet.dtype == torch.float32


def test_spoiled_weights_are_one_sentence(copy):
    next((copy / "unet").glob("*.safetensors")).write_bytes(b"spoiled")
    find_model(str(copy)).check()
    with pytest.raises(ModelError, match="cannot load") as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_options_that_cannot_be_say_where(copy):
    config = json.loads((copy / "unet" / "config.json").read_text())
    config |= {"_class_name": "CachedUNet2DConditionModel", "cache_interval": 0}
    (copy / "unet" / "config.json").write_text(json.dumps(config))
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = ["sd_ext", "CachedUNet2DConditionModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=rf"cannot load .*{copy.name}: cache_interval must be"):
        load(copy)


def test_a_strangers_code_does_not_run(copy):
    (copy / "unet" / "strange.py").write_text("raise SystemExit('code of the model ran')")
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = ["strange", "Strange"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="cannot load"):
        load(copy)


def test_half_precision_files_only(copy):
    for weights in copy.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert load(copy).vae.dtype == torch.float32


def test_a_local_folder_needs_no_network(copy, monkeypatch):
    def no_network(*address):
        raise AssertionError(f"the network was touched: {address}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    assert load(copy)


def test_loading_is_quiet(copy, capfd):
    load(copy)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_hub_id_is_one_sentence():
    with pytest.raises(ModelError, match="taken as a Hub id"):
        load("nobody/nothing")
