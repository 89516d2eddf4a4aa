"""`sd-ext convert checkpoint`, and single files in the other commands."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from tests.models import original_layout as original
from tests.models.original_layout import EPSILON


def test_there_and_back(run, tiny_file, tmp_path):
    there = run("convert", "checkpoint", tiny_file("sd15"), "folder")
    assert (there.code, there.out) == (0, "folder\n")
    back = run("convert", "checkpoint", "folder", "back.safetensors")
    assert (back.code, back.out) == (0, "back.safetensors\n")
    before, after = load_file(tiny_file("sd15")), load_file(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)


def test_a_missing_autoencoder_is_given(run, tiny_file, tmp_path):
    tensors = load_file(tiny_file("sd15"))
    start = "first_stage_model."
    save_file({k: v for k, v in tensors.items() if not k.startswith(start)}, tmp_path / "a.safetensors", EPSILON)
    alone = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    save_file(alone, tmp_path / "vae.safetensors")
    refused = run("convert", "checkpoint", "a.safetensors", "folder")
    assert refused.code == 2
    assert "holds no autoencoder (vae)" in refused.err
    assert not (tmp_path / "folder").exists()
    given = run("convert", "checkpoint", "a.safetensors", "folder", "--vae", "vae.safetensors")
    assert given.code == 0
    written = load_file(tmp_path / "folder" / "vae" / "diffusion_pytorch_model.safetensors")
    assert len(written) == len(alone)
    assert (written["decoder.conv_in.weight"] == alone["decoder.conv_in.weight"]).all()


def test_generate_draws_from_a_file(run, tiny_file, said):
    given = ("--steps", 1, "--size", "32x32", "--prediction-type", "v_prediction")
    drawn = run("generate", "red apple", "--model", tiny_file("sd15"), *given)
    assert drawn.code == 0
    (picture,) = drawn.paths
    assert "predicts v_prediction (as you say)" in "\n".join(said)
    assert "prediction_type v_prediction" in run("info", picture).out
    refused = run("generate", "red apple", "--prediction-type", "v_prediction")
    assert (refused.code, refused.out) == (2, "")
    assert "embedded is no single file: what it predicts is in its scheduler_config.json" in refused.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["FILE", "other.safetensors"], "is a file already; to convert it, let OUT be a folder"),
        (["embedded", "folder"], "is a folder already; to convert it, let OUT be a .safetensors file"),
        (["FILE", "taken"], "taken exists; give --overwrite or another name"),
        (["FILE", "folder", "--vae", "lora.safetensors"], "is a LoRA, which changes a model"),
        (["FILE", "folder", "--vae", "nowhere"], "no model folder at nowhere"),
        (["FILE", "folder", "--prediction-type", "vee"], "unknown prediction type 'vee'"),
        (["FILE", "folder", "--revision", "main"], "only the Hub has revisions"),
        (["embedded", "a.safetensors", "--vae", "FILE"], "go with a single file"),
        (["embedded", "a.safetensors"], "so the model stays a folder"),
        (["lora.safetensors", "folder"], "is a LoRA, which changes a model"),
        (["nowhere.safetensors", "folder"], "no such model folder or file"),
    ],
)
def test_what_cannot_be_converted(arguments, sentence, run, tiny_file, tmp_path):
    (tmp_path / "taken").mkdir()
    original.write_sparse(tmp_path / "lora.safetensors", {"lora_unet_a.lora_down.weight": (4, 4)})
    there = sorted(tmp_path.iterdir())
    refused = run("convert", "checkpoint", *(tiny_file("sd15") if each == "FILE" else each for each in arguments))
    assert (refused.code, refused.out) == (2, "")
    assert sentence in refused.err
    assert refused.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == there


def test_info_says_what_a_file_is(run, tiny_file, tmp_path):
    said = run("info", tiny_file("sd15"))
    assert said.code == 0
    assert "Stable Diffusion 1.x, for StableDiffusionPipeline" in said.out
    original.write_sparse(tmp_path / "lora.safetensors", {"lora_unet_a.lora_down.weight": (4, 4)})
    assert "a LoRA" in run("info", "lora.safetensors").out
    (tmp_path / "bad.safetensors").write_bytes(b"?")
    assert run("info", "bad.safetensors").code == 2
