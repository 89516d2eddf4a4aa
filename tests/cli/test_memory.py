"""The memory line of `--dry-run`: its weights are those of the loaded parts, its peaks those of a real run."""

from __future__ import annotations

import pytest
import torch

from sd_ext.cli.memory import activations, memory_line
from sd_ext.cli.request import Recipe, Resources
from sd_ext.models import find_model
from sd_ext.training.run.memory import peak_bytes, size_of


def recipe(**options) -> Recipe:
    return Recipe(prompt="red apple", size="64x64", **options)


@pytest.mark.parametrize("family", ["sdxl", pytest.param("sd", marks=pytest.mark.slow)])
def test_peaks_are_those_of_a_real_run(tiny_pipeline_dir, tiny_sdxl_dir, family):
    folder = tiny_pipeline_dir if family == "sd" else tiny_sdxl_dir
    model = find_model(folder)
    estimate = activations(recipe(), model, "float32", Resources())
    unet, vae = model.load("unet").eval(), model.load("vae").eval()
    given = {"encoder_hidden_states": torch.randn(2, 77, unet.config.cross_attention_dim)}
    if family == "sdxl":
        given["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 24), "time_ids": torch.randn(2, 6)}
    with torch.no_grad():
        real = peak_bytes([unet], lambda: unet(torch.randn(2, 4, 8, 8), torch.tensor(1), **given))
        assert estimate["unet"] == pytest.approx(real, rel=0.1)
        assert estimate["vae"] == pytest.approx(peak_bytes([vae], lambda: vae.decode(torch.randn(1, 4, 8, 8))), rel=0.1)


@pytest.mark.slow
def test_more_pictures_and_pixels_take_more_and_savings_less(tiny_pipeline_dir):
    model = find_model(tiny_pipeline_dir)

    def peaks(resources=None, **options) -> dict[str, int]:
        return activations(recipe(**options), model, "float32", resources or Resources())

    usual = peaks()
    assert peaks(guidance=1.0)["unet"] < usual["unet"] < peaks(upscale=2.0)["unet"]
    four, sliced = peaks(Resources(batch=4)), peaks(Resources(batch=4, vae_slicing=True))
    assert four["unet"] > 2 * usual["unet"]
    assert sliced["vae"] <= usual["vae"] * 1.1 < four["vae"]
    half = activations(recipe(), model, "float16", Resources())
    assert half["unet"] < usual["unet"]


def test_the_line(tiny_pipeline_dir, run):
    model = find_model(tiny_pipeline_dir)
    line = memory_line(recipe(), model, "float32", Resources())
    megabytes = size_of([model.load("unet")]) / 1e6
    assert f"U-Net {megabytes:.0f} MB + " in line and "autoencoder" in line and "text" in line
    shown = run("generate", "red apple", "--model", tiny_pipeline_dir, "--dry-run")
    assert (shown.code, shown.out.count("weights + peak")) == (0, 1)


def test_offloading_needs_less(tiny_pipeline_dir):
    model = find_model(tiny_pipeline_dir)
    assert "offloaded by part" in memory_line(recipe(), model, "float16", Resources(offload="model"))
    assert "largest layer" in memory_line(recipe(), model, "float16", Resources(offload="sequential"))
