"""Preview pictures: what the pipeline itself would draw, on a sheet with names."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from sd_ext.training.model.files import find_model
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.run.previews import draw, labelled_sheet
from sd_ext.training.settings import TextToImageConfig


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@torch.no_grad()
def test_a_preview_is_the_pipelines_own_picture(family, tiny_pipeline_dir, tiny_sdxl_dir):
    folder = tiny_sdxl_dir if family == "sdxl" else tiny_pipeline_dir
    pipe = (StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    towers = TextTowers.load(find_model(str(folder)))
    states = {text: towers(towers.tokenize([text])) for text in ("red circle", "blue")}
    config = TextToImageConfig(resolution=32, preview_steps=3, preview_guidance=2.5)
    ours = draw(pipe, states["red circle"], states["blue"], 5, config)
    [theirs] = pipe(
        "red circle", negative_prompt="blue", num_inference_steps=3, guidance_scale=2.5, height=32, width=32,
        generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    assert ours.shape == (32, 32, 3)
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    other = draw(pipe, states["red circle"], states["blue"], 6, config)
    assert np.abs(ours.astype(int) - other.astype(int)).max() > 8


def test_the_sheet_has_every_picture_under_its_caption_and_beside_its_name():
    def plain(value):
        return np.full((24, 32, 3), value, np.uint8)

    rows = {"base": [plain(10 * i) for i in range(5)], "trained": [plain(100 + 10 * i) for i in range(5)]}
    captions = ["a", "a caption that is much too long for such a small picture", "", "c", "d"]
    sheet = labelled_sheet(rows, captions, columns=3)
    assert labelled_sheet(rows, captions[:3], columns=3).width == sheet.width
    pixels = np.asarray(sheet)
    for row in rows.values():
        for picture in row:
            same = (pixels == picture[0, 0]).all(-1)
            assert same.sum() >= 24 * 32
    bare = labelled_sheet({"": rows["base"]}, captions, columns=5)
    assert bare.height < sheet.height
    assert (np.asarray(bare)[:14] < 128).any()  # captions
