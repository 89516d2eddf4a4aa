"""Tiny pipelines in the shapes of SD 1.5, SD 2.1 and SDXL, LoRA runs on them, and what the trained models make."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..conftest import _autoencoder, _text_config, _tokenizer
from ..lora.adapters import kohya_name
from ..lora.models import tiny_unet

SETTINGS = {
    "device": "cpu", "tracker": "none", "resolution": (64,), "buckets": False, "batch_size": 2, "steps": 3, "rank": 2,
    "learning_rate": 0.02, "validate_every": 0, "weight_decay": 0.0, "text_dropout": 0.0, "memory_check": False,
    "preview_steps": 2, "blocks": ("down_blocks.1", "mid_block"),
}  # fmt: skip
WIDTHS = {"sd15": (32,), "sd21": (1024,), "sdxl": (16, 32)}  # of the text encoders
TEXTS = ("red circle", "a blue bar", "")


def write_pipeline(shape: str, folder: Path) -> Path:
    """A pipeline with random weights, the same each time: the blocks of the full model, 8 and 16 channels wide.

    SD 2.1's text is 1024 wide as in the full model, by which its LoRA files are told from those of SD 1.x.
    """
    widths = WIDTHS[shape]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        settings = {**tiny_unet(shape).config, "cross_attention_dim": sum(widths)}
        if shape == "sdxl":
            settings["projection_class_embeddings_input_dim"] = 6 * 8 + 24
        parts: dict[str, Any] = {"vae": _autoencoder().eval(), "unet": UNet2DConditionModel(**settings).eval()}
        for i, width in enumerate(widths):
            config = _text_config(width, 24 if i else 512)
            config.num_hidden_layers, config.intermediate_size = 2 if shape == "sdxl" else 1, 64
            kind = CLIPTextModelWithProjection if i else CLIPTextModel
            parts[f"text_encoder{'_2' * i}"] = kind(config).eval()
            parts[f"tokenizer{'_2' * i}"] = _tokenizer()
    parts["scheduler"] = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        prediction_type="v_prediction" if shape == "sd21" else "epsilon",
    )  # fmt: skip
    if shape == "sdxl":
        pipe: Any = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
        pipe = StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return folder


@dataclass
class Trained:
    """A finished run.

    Args:
        task: with the models as they were at the end, averages not applied.
        run: the loop's state.
        folder: OUT/model.
        base: the pipeline it started from.
    """

    task: Any
    run: Any
    folder: Path
    base: Path

    @property
    def config(self) -> Any:
        return self.task.config

    @property
    def kohya(self) -> Path:
        return self.folder / f"{self.config.result.name}_kohya.safetensors"

    @property
    def diffusers(self) -> Path:
        return self.folder / "pytorch_lora_weights.safetensors"

    def changed(self) -> set[str]:
        """Names of the parameters that are trained."""
        return {name for name, p in self.task.model.named_parameters() if p.requires_grad}

    @cached_property
    def made(self) -> dict[str, torch.Tensor]:
        """What the trained models make of fixed inputs."""
        return self.make()

    def make(self) -> dict[str, torch.Tensor]:
        self.task.model.eval()
        trained = dict(self.task.towers.encoders) if self.task.towers else {}
        return outputs(SimpleNamespace(**{**untouched(self.base).components, "unet": self.task.unet, **trained}))


def config_class(name: str) -> Any:
    """The class of the settings for `sd-ext train NAME`."""
    from sd_ext.training.few_step.config import FewStepConfig
    from sd_ext.training.lora.config import LoraConfig
    from sd_ext.training.slider.config import SliderConfig

    return {"lora": LoraConfig, "few-step": FewStepConfig, "slider": SliderConfig}[name]


def train(base: Path, out: Path, command: str = "lora", **settings: Any) -> Trained:
    """`sd-ext train COMMAND` with `SETTINGS` but for those given."""
    from sd_ext.training.lora import launch
    from sd_ext.training.run import fit as runner

    from .conftest import forget_accelerate_state

    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        fit, start = launch.fit, runner.start
        patch.setattr(launch, "fit", lambda task, config: fit(seen.setdefault("task", task), config))
        patch.setattr(runner, "start", lambda *args: seen.setdefault("run", start(*args)))
        config = config_class(command).of(**{**SETTINGS, "model": str(base), "out": str(out), **settings})
        forget_accelerate_state()
        try:
            folder = launch.launch(config)
        finally:
            forget_accelerate_state()
    return Trained(seen["task"], seen["run"], folder, base)


def a_task(tmp_path: Path, base: Path, data: Path, **settings: Any) -> Any:
    """A task before it begins."""
    from sd_ext.training.lora.config import LoraConfig
    from sd_ext.training.lora.task import LoraTask
    from sd_ext.training.model.trainable import find_trainable

    given = {**SETTINGS, "model": str(base), "data": str(data), "out": str(tmp_path / "out"), **settings}
    return LoraTask(LoraConfig.of(**given), find_trainable(str(base)))


@cache
def untouched(folder: Path, vae: bool = False) -> Any:
    """A pipeline in float32, loaded once, and never to be changed; with or without its autoencoder."""
    without = {} if vae else {"vae": None}
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(folder: Path, vae: bool = False) -> Any:
    """One's own copy of it."""
    return copy.deepcopy(untouched(folder, vae))


@torch.no_grad()
def outputs(pipe: Any, texts: tuple[str, ...] = TEXTS) -> dict[str, torch.Tensor]:
    """Text states and the U-Net's prediction from them for fixed latents, as the family's pipeline conditions it."""
    sdxl = hasattr(pipe, "text_encoder_2")
    encoders = [pipe.text_encoder, *([pipe.text_encoder_2] if sdxl else [])]
    states, extra = [], {}
    tokenizers: list[Any] = [pipe.tokenizer, getattr(pipe, "tokenizer_2", None)]
    for encoder, tokenizer in zip(encoders, tokenizers, strict=False):
        tokens = tokenizer(list(texts), padding="max_length", max_length=24, truncation=True, return_tensors="pt")
        said = encoder(tokens.input_ids, output_hidden_states=True)
        states.append(said.hidden_states[-2] if sdxl else said.last_hidden_state)
    if sdxl:
        time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * len(texts))
        extra = {"added_cond_kwargs": {"text_embeds": said.text_embeds, "time_ids": time_ids}}
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(len(texts), pipe.unet.config.in_channels, 8, 8, generator=draw)
    t = torch.linspace(10, 900, len(texts)).long()
    made = {"states": torch.cat(states, -1), "unet": pipe.unet(latents, t, torch.cat(states, -1), **extra).sample}
    return made | ({"pooled": said.text_embeds} if sdxl else {})


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-4) -> None:
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def add_kohya(pipe: Any, tensors: dict[str, torch.Tensor], shape: str) -> Any:
    """A pipeline with a kohya file of LoRA or DoRA added as the format defines it, alphas and all.

    W' = W + alpha / rank up @ down; DoRA's is scaled to the magnitudes, one for each row.
    """
    left = set(tensors)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        model: Any = getattr(pipe, part, None)
        for path, module in model.named_modules() if model is not None else ():
            name = kohya_name(shape, part, path)
            if not isinstance(module, (nn.Linear, nn.Conv2d)) or f"{name}.lora_down.weight" not in tensors:
                continue
            down, up = tensors[f"{name}.lora_down.weight"].double(), tensors[f"{name}.lora_up.weight"].double()
            change = (up.flatten(1) @ down.flatten(1)) * (tensors[f"{name}.alpha"].item() / len(down))
            weight = module.weight.data.double() + change.reshape(module.weight.shape)
            if (scale := tensors.get(f"{name}.dora_scale")) is not None:
                rows = weight.flatten(1)
                weight = (rows / rows.norm(dim=1, keepdim=True) * scale.double().reshape(-1, 1)).reshape(weight.shape)
            module.weight.data = weight.float()
            left -= {f"{name}.{field}" for field in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")}
    assert not left
    return pipe


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    """All weights of U-Net and text encoders, by part and name; copies."""
    parts = [part for part in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipe, part)]
    return {f"{part}.{n}": copy.deepcopy(p) for part in parts for n, p in getattr(pipe, part).state_dict().items()}


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Folders of the tiny pipelines, by shape. Shared by all tests: copy them before changing a file."""
    root = tmp_path_factory.mktemp("bases")
    return {shape: write_pipeline(shape, root / shape) for shape in WIDTHS}


@pytest.fixture(scope="session")
def lora_run(bases, tmp_path_factory):
    """`lora_run("sdxl", method="dora")`: a run with these settings, the same one for all who ask for the same."""
    from .conftest import write_pictures

    root, done = tmp_path_factory.mktemp("lora_runs"), {}
    data = write_pictures(root / "data", 64)

    def run(shape: str = "sd15", **settings: Any) -> Trained:
        name = repr((shape, sorted(settings.items())))
        if name not in done:
            out = root / f"{len(list(root.iterdir()))}"
            given = {"data": str(data), "cache_dir": str(root / "cache"), **settings}
            done[name] = train(bases[shape], out, **given)
        return done[name]

    return run
