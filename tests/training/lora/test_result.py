"""What a run leaves behind: headers, training.json as the Hub's part reads it, pictures beside the base model's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sd_ext.errors import InputError
from sd_ext.hub import read_finished, stage
from sd_ext.hub.stranger import WITHOUT_US
from sd_ext.lora import read_lora
from sd_ext.lora.weights import StoredWeights
from sd_ext.models import find_model
from sd_ext.sheets import labelled_sheet
from sd_ext.training.lora.config import LoraConfig

from ..lora_cases import pipeline, train

RUN = {
    "name": "shapes", "alpha": 1.0, "warmup": 1, "seed": 5, "flip": True, "loss_weighting": "min_snr",
    "text_encoder": True, "text_encoder_learning_rate": 0.01, "accumulation": 2, "offset_noise": 0.1,
    "validate_every": 2, "steps": 3,
    "prompts": ("red bar", "a circle"), "preview_seed": 4, "preview_guidance": 1.5, "validation_share": 0.2,
}  # fmt: skip
QUICK = {"validate_every": 0, "blocks": ("mid_block",)}


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("shape", "architecture", "version"),
    [
        ("sd15", "stable-diffusion-v1", "sd_v1"),
        pytest.param("sd21", "stable-diffusion-v2-768-v", "sd_v2", marks=pytest.mark.slow),
        pytest.param("sdxl", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0", marks=pytest.mark.slow),
    ],
)
def test_kohyas_header_is_of_the_run(lora_run, shape, architecture, version):
    trained = lora_run(shape, **RUN | (QUICK if shape == "sd21" else {}))
    found = header(trained.kohya)
    expected = {
        "ss_base_model_version": version, "ss_v2": str(shape == "sd21"), "ss_network_module": "networks.lora",
        "ss_network_dim": "2", "ss_network_alpha": "1", "ss_network_args": "{}", "ss_output_name": "shapes",
        "ss_steps": "3", "ss_max_train_steps": "3", "ss_learning_rate": "0.02", "ss_unet_lr": "0.02",
        "ss_text_encoder_lr": "0.01", "ss_optimizer": "adamw", "ss_batch_size_per_device": "2",
        "ss_gradient_accumulation_steps": "2", "ss_resolution": "(64, 64)", "ss_enable_bucket": "False",
        "ss_seed": "5", "ss_min_snr_gamma": "5.0", "ss_noise_offset": "0.1", "ss_mixed_precision": "no",
        "ss_num_train_images": "9", "ss_num_reg_images": "0", "ss_num_validation_images": "2",
        "ss_lr_warmup_steps": "1", "ss_flip_aug": "True", "ss_zero_terminal_snr": "False",
        "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": f"{architecture}/lora",
        "modelspec.title": "shapes", "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "v" if shape == "sd21" else "epsilon",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert all(len(found[name]) == length for name, length in (("sshs_model_hash", 64), ("sshs_legacy_hash", 8)))
    assert "lora_adapter_metadata" not in found


def test_diffusers_header_says_the_strengths(lora_run):
    settings = json.loads(header(lora_run("sdxl", **RUN).diffusers)["lora_adapter_metadata"])
    for part in ("unet", "text_encoder", "text_encoder_2"):
        assert (settings[f"{part}.r"], settings[f"{part}.lora_alpha"]) == (2, 1.0)


@pytest.mark.parametrize("method", ["lokr", *(pytest.param(m, marks=pytest.mark.slow) for m in ("dora", "loha"))])
def test_other_methods_name_their_module(lora_run, method):
    found = header(lora_run(method=method).kohya)
    assert found["ss_network_module"] == "lycoris.kohya"
    assert json.loads(found["ss_network_args"])["algo"] == ("lora" if method == "dora" else method)


def test_a_dora_is_written_for_comfyui_too(lora_run):
    trained = lora_run("sd15", method="dora", text_encoder=True)
    plain, dora = read_lora(trained.folder / "lora_comfyui.safetensors"), read_lora(trained.kohya)
    assert plain.plain
    assert plain.adapters.keys() == dora.adapters.keys()
    weights = StoredWeights(find_model(str(trained.base)))
    for module in plain.adapters:
        expected = dora.delta(module, weights.weight(module))
        values = torch.linalg.svdvals(expected.flatten(1))
        best = values[plain.adapters[module].rank :].norm()
        assert (plain.delta(module) - expected).norm() <= 1.01 * best + 0.01 * values.norm()
    assert not (lora_run("sd15", method="lokr").folder / "lora_comfyui.safetensors").exists()
    assert "lora_comfyui.safetensors" in read_finished(trained.folder.parent).weights


def test_training_json_is_what_the_hubs_part_reads(lora_run):
    trained = lora_run("sdxl", **RUN)
    run = read_finished(trained.folder.parent)
    assert (run.name, run.family, run.steps, run.pictures) == ("shapes", "sdxl", 3, 9)
    assert run.base_model == str(trained.base.resolve())
    assert (run.prompts, run.seeds, run.guidance) == (("red bar", "a circle"), (4, 5), 1.5)
    assert run.settings["loss_weighting"] == "min_snr"
    assert [step for step, _ in run.validation] == [2, 3]
    assert all(loss > 0 for _, loss in run.validation)
    assert len(run.samples) == 2


@pytest.mark.parametrize(
    "settings",
    [
        RUN,
        pytest.param({"method": "lokr"}, marks=pytest.mark.slow),
        {
            "tokens": ("<toy>",),
            "prefix": "<toy>",
            "token_vectors": 2,
            "validate_every": 1,
            "steps": 1,
            "prompts": ("<toy>",),
        },
    ],
)
def test_a_run_can_be_published(lora_run, tmp_path, settings, fresh, monkeypatch):
    def run_alone(code, folder):
        done = fresh(WITHOUT_US + code, folder)
        return done.returncode, done.stderr

    monkeypatch.setattr("sd_ext.hub.stranger.run_alone", run_alone)  # without waiting for the libraries each time
    trained = lora_run("sdxl", **settings)
    staged = stage(trained.folder, tmp_path / "staged", "someone/shapes")
    assert (staged / trained.kohya.name).read_bytes() == trained.kohya.read_bytes()
    assert str(trained.base) not in (staged / "README.md").read_text()


def test_a_relative_base_model_is_named_by_its_whole_path(bases, tmp_path, picture_folder, monkeypatch):
    shutil.copytree(bases["sd15"], tmp_path / "models" / "mine")  # which also reads as an id on the Hub
    monkeypatch.chdir(tmp_path)
    trained = train(Path("models/mine"), tmp_path / "out", data=str(picture_folder), steps=1)
    assert read_finished(trained.folder).base_model == str(tmp_path / "models" / "mine")


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a:b", "..", "a<b", "x" * 101])
def test_names_that_no_file_can_have_are_refused_at_once(name):
    with pytest.raises(InputError, match=r"name is .*plain file name"):
        LoraConfig.of(name=name)


@pytest.mark.parametrize("tokens", [("a b",), ("<x>", "<x>"), ("",)])
def test_tokens_are_different_words(tokens):
    with pytest.raises(InputError, match=r"tokens are .*without spaces"):
        LoraConfig.of(tokens=tokens)


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_pictures_are_the_pipelines_own_beside_the_base_models(lora_run, shape):
    trained = lora_run(shape, **RUN)
    pipe = pipeline(trained.base, vae=True)
    pipe.scheduler = trained.task.drawer(trained.task.unet).scheduler

    def draw(prompt: str, seed: int) -> np.ndarray:
        noise = torch.Generator().manual_seed(seed)
        size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 1.5}
        return np.asarray(pipe(prompt, negative_prompt="", generator=noise, **size).images[0])

    def drawn() -> list[np.ndarray]:
        return [draw("red bar", 4), draw("a circle", 5)]

    base = drawn()
    pipe.load_lora_weights(trained.folder)
    lora = drawn()
    saved = [np.asarray(Image.open(path)) for path in sorted((trained.folder / "samples").glob("0*.png"))]
    for expected, found in ((base, trained.task.base_pictures), (lora, saved)):
        assert len(found) == 2
        for a, b in zip(expected, found, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1
    sheet = labelled_sheet(
        {"base": trained.task.base_pictures, "LoRA": [Image.fromarray(picture) for picture in saved]},
        ["red bar", "a circle"],
    )
    assert np.array_equal(np.asarray(sheet), np.asarray(Image.open(trained.folder / "samples" / "sheet.png")))
    previews = sorted(path.name for path in (trained.folder.parent / "previews").glob("*.png"))
    assert previews == ["step-00000002.png", "step-00000003.png"]


def test_sdxl_is_conditioned_on_sizes_and_pooled_states_and_decoded_in_float32(lora_run):
    trained = lora_run("sdxl", mixed_precision="bf16", steps=1, validate_every=1, prompts=("x",))
    assert next(trained.task.encoded.vae().parameters()).dtype == torch.float32
    found = trained.task.conditions(["red bar"], [trained.task.pictures.samples[0].time_ids()])
    assert found["pooled"].shape == (1, 24)
    assert found["states"].shape == (1, 24, 48)
    assert found["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]]
