from __future__ import annotations

import json
import shutil

import pytest
import torch

import sd_ext
from sd_ext.cli.models import check_folder, find_model, load_pipeline
from sd_ext.errors import ModelError


@pytest.fixture
def copy(tiny_pipeline_dir, tmp_path):
    """A pipeline folder to spoil."""
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline")


def load(folder):
    return load_pipeline(folder, torch.device("cpu"), torch.float32)


def test_a_good_folder_is_found_and_loaded(copy):
    assert find_model(str(copy)) == copy
    assert load(copy).unet.dtype == torch.float32


def test_what_is_not_there_may_be_on_the_hub():
    assert find_model("owner/name") == "owner/name"
    for missing in ("nowhere", "./no/where", "/no/where", "a/b/c", "../up"):
        with pytest.raises(ModelError, match="no such model folder"):
            find_model(missing)


def test_the_embedded_model_may_be_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(sd_ext, "pretrained_path", lambda: tmp_path, raising=False)
    with pytest.raises(ModelError, match="no embedded model"):
        find_model(None)


def test_not_a_pipeline(tmp_path):
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        check_folder(tmp_path)
    (tmp_path / "model_index.json").write_text("[")
    with pytest.raises(ModelError, match=r"model_index\.json is not valid JSON"):
        check_folder(tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"model_index\.json must be an object"):
        check_folder(tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        check_folder(tmp_path / "model_index.json")


def test_a_missing_part(copy):
    shutil.rmtree(copy / "vae")
    with pytest.raises(ModelError, match="incomplete: it has no folder vae"):
        check_folder(copy)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickle_weights_are_refused(copy, part):
    weights = next((copy / part).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=f"{part} holds pickle weights only"):
        check_folder(copy)
    with pytest.raises(ModelError):
        load(copy)


def test_spoiled_weights_are_one_sentence(copy):
    next((copy / "unet").glob("*.safetensors")).write_bytes(b"spoiled")
    check_folder(copy)
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
