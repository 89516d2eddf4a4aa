"""Preview pictures: what the pipeline itself would draw."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from sd_ext.training.diffusion.previews import draw
from sd_ext.training.diffusion.settings import PreviewSettings
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.trainable import find_trainable


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@torch.no_grad()
def test_a_preview_is_the_pipelines_own_picture(family, tiny_pipeline_dir, tiny_sdxl_dir):
    folder = tiny_sdxl_dir if family == "sdxl" else tiny_pipeline_dir
    pipe = (StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    towers = TextTowers.load(find_trainable(str(folder)))
    states = {text: towers(towers.tokenize([text])) for text in ("red circle", "blue")}
    settings = PreviewSettings(prompts=("red circle --w 50 --d 5 --n blue",), preview_steps=3, preview_guidance=2.5)
    [shot] = settings.shots([], 32, pipe.vae_scale_factor)
    ours = draw(pipe, states["red circle"], states["blue"], shot)
    [theirs] = pipe(
        "red circle", negative_prompt="blue", num_inference_steps=3, guidance_scale=2.5, height=32, width=48,
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    assert ours.shape == (32, 48, 3)
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    other = draw(pipe, states["red circle"], states["blue"], replace(shot, seed=6))
    assert np.abs(ours.astype(int) - other.astype(int)).max() > 8
