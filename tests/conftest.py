"""What all tests share: a Stable Diffusion small enough to save, load and sample in moments."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Read when torch and the Hub's client are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads that wait for one another cost more than they do
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the network

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def build_tiny_pipeline() -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` with random weights, the same each time: 64 x 64 pictures, (4, 8, 8) latents."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=24,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        )
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8, 8, 8, 8],
            norm_num_groups=4,
            sample_size=64,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
            block_out_channels=[32, 64],
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=32,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def _tiny_components() -> dict:
    return build_tiny_pipeline().components


@pytest.fixture
def tiny_pipeline(_tiny_components) -> StableDiffusionPipeline:
    """A tiny pipeline in memory. Its networks are shared by all tests: swap the scheduler, leave the weights."""
    from diffusers import StableDiffusionPipeline

    own = {
        **_tiny_components,
        "scheduler": type(_tiny_components["scheduler"]).from_config(_tiny_components["scheduler"].config),
    }
    pipe = StableDiffusionPipeline(**own, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_pipeline_dir(_tiny_components, tmp_path_factory) -> Path:
    """The tiny pipeline saved as safetensors. Shared by all tests: copy it before changing a file."""
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    StableDiffusionPipeline(**_tiny_components, requires_safety_checker=False).save_pretrained(folder)
    return folder
