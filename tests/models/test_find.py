"""What a user's words for a model mean."""

from __future__ import annotations

import os
import shutil

import pytest

import sd_ext
from sd_ext.errors import ModelError
from sd_ext.models import EMBEDDED, Folder, OnHub, find_model, find_part, is_embedded, is_hub_id
from tests.cli.test_startup import SLOW, modules_after


@pytest.fixture
def own(tiny_pipeline_dir, tmp_path):
    """A pipeline folder to spoil."""
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "own")


def test_a_folder_by_its_path_as_text_or_not(own, monkeypatch):
    monkeypatch.setenv("HOME", str(own.parent))
    for name in (str(own), own, "~/own"):
        model = find_model(name)
        assert isinstance(model, Folder)
        assert (model.root, model.name) == (own, str(name))
        assert model.pipeline_class == "StableDiffusionPipeline"


def test_a_finished_run_is_its_model(own, tmp_path):
    (tmp_path / "run").mkdir()
    own.rename(tmp_path / "run" / "model")
    model = find_model(str(tmp_path / "run"))
    assert isinstance(model, Folder)
    assert (model.root, model.name) == (tmp_path / "run" / "model", str(tmp_path / "run"))


def test_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / EMBEDDED).mkdir()  # a folder of that name is ./embedded
    model = find_model(EMBEDDED)
    model.check()
    assert model.family == "sd15"
    assert is_embedded(EMBEDDED)
    assert is_embedded(str(sd_ext.pretrained_path()))
    assert not is_embedded("./embedded")
    monkeypatch.setattr("sd_ext.models.find.pretrained_path", lambda: tmp_path)
    with pytest.raises(ModelError, match="no embedded model; give"):
        find_model(EMBEDDED)


def test_what_is_not_there_may_be_on_the_hub(tmp_path):
    model = find_model("owner/name")
    assert isinstance(model, OnHub)
    model.check()  # without the network
    for missing in ("nowhere", "./no/where", "/no/where", "a/b/c", "../up", "owner/model.safetensors", tmp_path / "a"):
        with pytest.raises(ModelError, match=r"no such model folder or file: .* \(a Hub id reads owner/name\)"):
            find_model(missing)
    with pytest.raises(ModelError, match="owner/name is neither a folder here nor a model on the Hub that loads"):
        assert model.parts


@pytest.mark.parametrize("name", ["a/b", "_a/b-c.d", "stabilityai/stable-diffusion-xl-base-1.0"])
def test_hub_ids(name):
    assert is_hub_id(name)
    for changed in (f"/{name}", f"-{name}", f"{name}/c", name.partition("/")[0], f"{name} "):
        assert not is_hub_id(changed)


def test_what_is_no_folder_is_told_by_what_it_is(tmp_path):
    for name in ("model.safetensors", "model.ckpt", "Model.PT"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ModelError, match=r"model\.safetensors is a text, which begins with '\?'"):
        find_model(tmp_path / "model.safetensors")
    for name in ("model.ckpt", "Model.PT"):
        with pytest.raises(ModelError, match="is a pickle, which can run any code"):
            find_model(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="is a named pipe"):
        find_model(tmp_path / "pipe")
    for nothing in ("", " "):
        with pytest.raises(ModelError, match=r"no model named; give a pipeline folder, .* or embedded"):
            find_model(nothing)


def test_a_part_by_itself(own, tmp_path):
    (tmp_path / "run").mkdir()
    for root in (own / "vae", own, tmp_path / "run"):
        if root.parent == tmp_path and root.name == "run":
            own.rename(root / "model")
        part = find_part(str(root), "vae")
        assert list(part.parts) == ["vae"]
        assert part.config("vae")["_class_name"] == "AutoencoderKL"
    with pytest.raises(ModelError, match="no model folder at"):
        find_part(str(tmp_path / "nowhere"), "vae")
    with pytest.raises(ModelError, match="holds no vae"):
        find_part(str(tmp_path), "vae")


def test_nothing_slow_is_imported_to_find_and_check_one():
    code = "from sd_ext.models import find_model; model = find_model('embedded'); model.check(); print(model.family)"
    assert not modules_after(code) & SLOW
