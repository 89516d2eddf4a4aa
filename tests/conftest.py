"""What all tests share: a Stable Diffusion small enough to save, load and sample in moments."""

from __future__ import annotations

import gc
import logging
import os
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .fresh import Fresh

# Read when torch and the Hub's client are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads that wait for one another cost more than they do
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on the network

# Kept even where the environment says otherwise: the workers and some hundred processes that tests begin would each
# compile the package and the tests anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Models are thousands of small objects: by default Python would look for unreachable ones a quarter of the time.
gc.set_threshold(10_000, 20, 50)

MOST_WORKERS = 8
"""Each holds its own copy of torch and Diffusers, half a gigabyte."""

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes run the tests: one a core, and none besides pytest itself where one file or test is named.

    Workers take seconds to start, and print, breakpoints and Ctrl-C are simpler without them. `-n 3` asks for three.
    """
    alone = len(config.args) == 1 and ("::" in config.args[0] or config.args[0].endswith(".py"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if alone else min(cores, MOST_WORKERS)


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector need not walk through it any more."""
    gc.collect()
    gc.freeze()


LETTERS = [*string.ascii_lowercase, *string.digits]
WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test pulls the plug, so none has to wait until what it wrote is on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, merges=[], model_max_length=24)


def _text_config(width: int, projection: int = 512) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        norm_num_groups=4,
        sample_size=64,
    )


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )


def build_tiny_pipeline() -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` with random weights, the same each time: 64 x 64 pictures, (4, 8, 8) latents."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(_text_config(32))
        vae = _autoencoder()
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
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=_tokenizer(),
        unet=unet.eval(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_tiny_sdxl_pipeline() -> StableDiffusionXLPipeline:
    """A `StableDiffusionXLPipeline` in the same way: text states 16 + 32 wide, pooled ones 24."""
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        parts = {
            "text_encoder": CLIPTextModel(_text_config(16)).eval(),
            "text_encoder_2": CLIPTextModelWithProjection(_text_config(32, 24)).eval(),
            "vae": _autoencoder().eval(),
            "unet": UNet2DConditionModel(
                sample_size=8,
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
                up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
                block_out_channels=[32, 64],
                layers_per_block=1,
                norm_num_groups=8,
                attention_head_dim=[4, 8],
                use_linear_projection=True,
                cross_attention_dim=48,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 24,
            ).eval(),
        }
    tokenizers = {"tokenizer": _tokenizer(), "tokenizer_2": _tokenizer()}
    pipe = StableDiffusionXLPipeline(**parts, **tokenizers, scheduler=_scheduler(), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def fresh(tmp_path_factory) -> Iterator[Fresh]:
    """`fresh(code, *arguments)`: code in a process that has the libraries and nothing of this package; see `Fresh`."""
    processes = Fresh(tmp_path_factory.mktemp("fresh"))
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def tiny_sdxl_dir(tmp_path_factory) -> Path:
    """The tiny SDXL pipeline saved as safetensors. Shared by all tests: copy it before changing a file."""
    folder = tmp_path_factory.mktemp("tiny_sdxl") / "pipeline"
    build_tiny_sdxl_pipeline().save_pretrained(folder)
    return folder


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


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory) -> Any:
    """`tiny_file(family)`: a tiny checkpoint in the original layout, in float16, that says it predicts the noise.

    Shared by all tests: copy it before changing it.
    """
    made: dict[str, Path] = {}

    def path_of(family: str) -> Path:
        if family not in made:
            import torch
            from safetensors.torch import save_file

            from .models import original_layout as original

            made[family] = tmp_path_factory.mktemp(family) / "tiny.safetensors"
            save_file(original.tensors(family, torch.float16), made[family], original.EPSILON)
        return made[family]

    return path_of


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What this package logs as warnings. A command may have set the level of handlers, those of pytest too."""
    messages: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Kept(logging.WARNING)
    logging.getLogger("sd_ext").addHandler(handler)
    yield messages
    logging.getLogger("sd_ext").removeHandler(handler)
