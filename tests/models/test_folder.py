"""A pipeline folder: what it tells, what it refuses, what identifies it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.errors import ModelError
from sd_ext.models import Folder, Mixed, find_model, find_part


@pytest.fixture
def own(tiny_pipeline_dir, tmp_path):
    """A pipeline folder to spoil."""
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "own")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_it_tells(own, tiny_sdxl_dir):
    model = Folder(own)
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} == set(model.parts)
    assert (model.family, model.text_parts, model.tokenizers) == ("sd15", ("text_encoder",), ("tokenizer",))
    assert model.decisive == ["vae", "unet", "scheduler", "text_encoder", "tokenizer"]
    assert (model.prediction_type, model.pixels_per_latent) == ("epsilon", 8)
    assert model.noise()["beta_schedule"] == "scaled_linear"
    edit(own / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    edit(own / "text_encoder" / "config.json", hidden_size=1024)
    assert (model.family, model.prediction_type) == ("sd21", "v_prediction")
    large = Folder(tiny_sdxl_dir)
    assert (large.family, large.text_parts) == ("sdxl", ("text_encoder", "text_encoder_2"))


def test_parts_load_one_by_one_in_the_type_asked_for(own):
    model = Folder(own)
    assert model.load("unet", torch.bfloat16).dtype == torch.bfloat16
    assert model.load("text_encoder").dtype == torch.float32
    assert model.load("tokenizer").model_max_length == 24
    weights = set(model.load("unet").state_dict())
    assert set(model.tensors("unet")) == weights
    with torch.device("meta"):
        for part in ("unet", "text_encoder", "vae"):
            assert next(model.without_weights(part).parameters()).is_meta


def test_a_single_variant_is_taken_unless_another_is_asked_for(own):
    for weights in own.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert Folder(own).load("unet").dtype == torch.float32
    assert Folder(own).tensors("vae")
    assert Folder(own, variant="fp16").load("text_encoder")
    for model in (Folder(own, variant=""), Folder(own, variant="bf16")):
        with pytest.raises(ModelError, match=r"holds no .*weights as safetensors; there is .*fp16"):
            model.check_weights("unet")
        with pytest.raises(ModelError, match="does not load as UNet2DConditionModel"):
            model.load("unet")


def test_what_is_not_whole_is_refused(own, tmp_path):
    Folder(own).check()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"is not a pipeline: it has no model_index\.json"):
        find_model(empty).check()
    for damaged, complaint in (("[", "is not valid JSON"), ("[]", "must be an object")):
        (empty / "model_index.json").write_text(damaged)
        with pytest.raises(ModelError, match=rf"model_index\.json {complaint}"):
            find_model(empty)
    shutil.rmtree(own / "vae")
    for checked in (None, ("vae",), ("unet", "vae")):
        with pytest.raises(ModelError, match="incomplete: it has no folder vae"):
            Folder(own).check(checked)
    Folder(own).check(("unet",))
    (own / "unet" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no unet \(no config\.json there\)"):
        Folder(own).load("unet")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_are_never_read(own, part):
    weights = next((own / part).glob("*.safetensors"))
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    model = Folder(own)
    for check in (model.check, lambda: model.check((part,)), lambda: model.check_weights(part)):
        with pytest.raises(ModelError, match=rf"{part} holds no weights .*\.bin would be read as pickle"):
            check()
    with pytest.raises(ModelError, match="does not load"):
        model.load(part)


def test_a_digest_is_of_contents_and_of_nothing_else(own, tmp_path):
    parts = ("vae", "text_encoder", "tokenizer")
    before = Folder(own).digest(*parts)
    elsewhere = shutil.copytree(own, tmp_path / "elsewhere")
    assert Folder(elsewhere).digest(*parts) == before
    assert Folder(own).digest("vae") != Folder(own).digest("text_encoder")
    (elsewhere / "vae" / "notes.md").write_text("not a part of the model")
    assert Folder(elsewhere).digest(*parts) == before
    for changed in ("vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"):
        folder = shutil.copytree(own, tmp_path / changed.replace("/", "_"))
        edit(folder / changed, something="else")
        assert Folder(folder).digest(*parts) != before
    weights = elsewhere / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors[next(iter(tensors))].flatten()[0] += 1e-3
    save_file(tensors, weights)
    assert Folder(elsewhere).digest(*parts) != before


def test_parts_of_several_models(own, tmp_path):
    other = shutil.copytree(own / "vae", tmp_path / "vae")
    edit(other / "config.json", latent_channels=4, something="else")
    whole, vae = Folder(own), find_part(str(other), "vae")
    mixed = Mixed("own", {**dict.fromkeys(whole.parts, whole), "vae": vae})
    mixed.check()
    assert mixed.family == "sd15"
    assert mixed.config("vae")["something"] == "else"
    assert mixed.digest("vae") == vae.digest("vae") != whole.digest("vae")
    assert mixed.digest("unet") == whole.digest("unet")
    assert mixed.load("vae").config.latent_channels == 4
    with pytest.raises(ModelError, match="own is incomplete: it has no image_encoder"):
        mixed.config("image_encoder")
    for attempt in (mixed.pipeline, lambda: mixed.write_changed(tmp_path, ["unet"], lambda stored: {})):
        with pytest.raises(ModelError, match="save it as a folder first"):
            attempt()


def test_a_copy_differs_in_what_was_exchanged(own, tmp_path):
    (own / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    weights = own / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_suffix(".ema.safetensors"))
    (own / "notes.txt").write_text("mine")
    asked = []

    def change(stored):
        asked.append({part for part, _ in stored})
        return {(part, name): tensor.read() + 1 for (part, name), tensor in stored.items() if name == "conv_in.weight"}

    new = tmp_path / "new"
    new.mkdir()
    Folder(own).write_changed(new, ["unet"], change)
    assert asked == [{"unet"}]
    names = {path.relative_to(new) for path in new.rglob("*") if path.is_file()}
    left_out = {path.relative_to(own) for path in own.rglob("*") if path.is_file()} - names
    assert {path.name.partition(".")[2] for path in left_out} == {"bin", "ema.safetensors"}
    before, after = (load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (own, new))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"conv_in.weight"}
    for inside in (own / "new", own.parent):
        with pytest.raises(ModelError, match="lies in or around"):
            Folder(own).check_apart(inside)
