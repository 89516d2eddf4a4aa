"""A single file becomes a folder, and a folder a single file, to the bit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError, ModelError
from sd_ext.lora import apply_lora, from_peft, merge_into
from sd_ext.models import find_model
from sd_ext.models.written import write_model
from tests.models import original_layout as original


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.fixture(scope="session")
def full_of_sd15(tiny_file, tmp_path_factory):
    """A file with all that people's files hold besides the parts; and the tensors that are expected to come back."""
    path = tmp_path_factory.mktemp("full") / "a.safetensors"
    kept = {
        **load_file(tiny_file("sd15")),
        "alphas_cumprod": torch.rand(1000),
        f"{original.CLIP_OF_1}embeddings.position_ids": torch.arange(77)[None],
        "v_pred": torch.zeros(0),
        "ztsnr": torch.zeros(0),
    }
    kept["model.diffusion_model.out.2.weight"] = kept["model.diffusion_model.out.2.weight"].to(torch.bfloat16)
    copies = {"model_ema.decay": torch.zeros(()), "model_ema.diffusion_modelout2bias": torch.zeros(4)}
    save_file({**kept, **copies}, path, {"modelspec.title": "A model", "modelspec.prediction_type": "v"})
    return path, kept


def same(one, two):
    """Whether two dictionaries hold the same tensors, to the bit."""
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype
        and one[key].shape == two[key].shape
        and torch.equal(one[key].flatten().view(torch.uint8), two[key].flatten().view(torch.uint8))
        for key in one
    )


@pytest.mark.parametrize(
    "name", ["sdxl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sd15", "sd21", "sdxl-refiner"))]
)
def test_a_file_comes_back_to_the_bit(name, tiny_file, tmp_path):
    write_model(find_model(tiny_file(name)), tmp_path / "folder")
    folder = find_model(tmp_path / "folder")
    folder.check()
    write_model(folder, tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), load_file(tiny_file(name)))
    again = find_model(tmp_path / "back.safetensors")
    for part in (*again.networks, "scheduler"):
        assert again.config(part) == find_model(tiny_file(name)).config(part)
    assert header(tmp_path / "back.safetensors")["modelspec.prediction_type"] == "epsilon"
    from diffusers import DiffusionPipeline

    kind = type(DiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True))
    assert kind.__name__ == folder.pipeline_class == again.pipeline_class


def test_all_that_a_file_holds_comes_back_but_averaged_copies(full_of_sd15, tmp_path, said):
    path, kept = full_of_sd15
    write_model(find_model(path), tmp_path / "folder")
    assert "averaged copies of weights (model_ema.*, 2 tensors) are left out" in "\n".join(said)
    assert "predicts v_prediction, with zero terminal SNR (it holds the key v_pred)" in "\n".join(said)
    folder = find_model(tmp_path / "folder")
    noise = folder.noise()
    assert (noise["prediction_type"], noise["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert folder.config("scheduler")["timestep_spacing"] == "trailing"
    write_model(folder, tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), kept)
    assert header(tmp_path / "back.safetensors")["modelspec.title"] == "A model"


def test_a_folder_comes_back_to_the_bit(tiny_file, tmp_path, said):
    """With half of a text encoder's usual layers, and without the file that conversion writes beside the parts."""
    write_model(find_model(tiny_file("sd21")), tmp_path / "folder")
    (tmp_path / "folder" / "original_layout.safetensors").unlink()
    scheduler = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    write_model(find_model(tmp_path / "folder"), tmp_path / "a.safetensors")
    assert "layer 2 of the text encoder, which readers leave out, is written as a copy of layer 1" in "\n".join(said)
    assert header(tmp_path / "a.safetensors")["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    write_model(find_model(tmp_path / "a.safetensors"), tmp_path / "back")
    for file in (tmp_path / "folder").glob("*/*.safetensors"):
        assert same(load_file(file), load_file(tmp_path / "back" / file.relative_to(tmp_path / "folder")))
    assert find_model(tmp_path / "back").prediction_type == "v_prediction"


def test_a_lora_merged_into_a_file_is_what_it_is_in_memory(tiny_file, tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    model = find_model(tiny_file("sd21"))
    parts = {part: model.load(part) for part in ("unet", "text_encoder")}
    torch.manual_seed(0)
    targets = {"unet": ["to_q", "conv1"], "text_encoder": ["q_proj", "fc1"]}
    tuned = {part: inject_adapter_in_model(LoraConfig(r=2, target_modules=targets[part]), model.load(part))
             for part in parts}  # fmt: skip
    for network in tuned.values():
        for key, parameter in network.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.02)
    lora = from_peft(tuned, base="sd21")
    merge_into(model, [(lora, 0.7)], tmp_path / "a.safetensors")
    merge_into(model, [(lora, 0.7)], tmp_path / "folder")
    half = {part: model.load(part, torch.float16) for part in parts}
    apply_lora(half, lora, 0.7)
    before, after = load_file(tiny_file("sd21")), load_file(tmp_path / "a.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in changed} == {"to_q", "2", "attn", "c_fc"}
    for place in ("a.safetensors", "folder"):
        merged = find_model(tmp_path / place)
        for part, network in half.items():
            loaded = merged.load(part, torch.float16).state_dict()
            assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_what_a_file_cannot_say_keeps_a_model_a_folder(tiny_file, tiny_pipeline_dir, tmp_path):
    write_model(find_model(tiny_file("sd15")), tmp_path / "good")
    shutil.rmtree(tmp_path / "good" / "vae")
    out = tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match="incomplete: it has no folder vae"):
        write_model(find_model(tmp_path / "good"), out)
    write_model(find_model(tiny_file("sd15")), tmp_path / "good", overwrite=True)
    for part, name, value, sentence in (
        ("scheduler", "beta_end", 0.02, "has beta_end 0.02, not 0.012; a single file cannot say it"),
        ("scheduler", "prediction_type", "sample", "predicts sample, which a single file cannot say"),
        (
            "unet",
            "attention_head_dim",
            4,
            r"attention_head_dim is \[4, 4\]; readers of .* \[8, 8\]",
        ),
        ("unet", "norm_num_groups", 16, "norm_num_groups is 16; readers of a single file take it to be 32"),
        ("unet", "_class_name", "UNetFlatConditionModel", "is a UNetFlatConditionModel"),
        ("vae", "scaling_factor", 0.5, "scaling_factor is 0.5"),
        ("text_encoder", "num_attention_heads", 2, "num_attention_heads is 2"),
    ):
        folder = shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        config = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
        with pytest.raises(ModelError, match=sentence):
            write_model(find_model(folder), out)
    with pytest.raises(ModelError, match="norm_num_groups is 8; readers"):
        write_model(find_model(tiny_pipeline_dir), out)
    assert not out.exists()


def test_nothing_is_replaced_unasked(tiny_file, tmp_path):
    model = find_model(tiny_file("sd15"))
    for name in ("a", "a.safetensors"):
        (tmp_path / name).mkdir() if name == "a" else (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(InputError, match="exists; choose another"):
            write_model(model, tmp_path / name)
    own = shutil.copy(tiny_file("sd15"), tmp_path / "own.safetensors")
    with pytest.raises(InputError, match="is the model itself"):
        write_model(find_model(own), tmp_path / "own.safetensors", overwrite=True)
    write_model(model, tmp_path / "a.safetensors", overwrite=True)
    assert same(load_file(tmp_path / "a.safetensors"), load_file(tiny_file("sd15")))
