"""Stable Diffusion XL, its refiner, and Kolors, which has its U-Net."""

from __future__ import annotations

import importlib.util
import sys
import unittest.mock
from typing import Any

import torch
import transformers

from . import components as c
from .entry import IMAGE, PROMPT, Entry, assemble, entry, share, tensor, whole

FAMILY = "Stable Diffusion XL"
SIZE = {"height": 64, "width": 64}
HAND_OVER = 0.6
"""Share of the noise levels that the base model makes."""


def refiner() -> dict[str, Any]:
    return {
        "unet": c.unet_refiner(),
        "text_encoder": None,
        "tokenizer": None,
        "requires_aesthetics_score": True,
    }


class BaseAndRefiner:
    """The base model makes the first levels, the refiner the rest, each with a scheduler object of its own."""

    def __init__(self) -> None:
        self.base = assemble("StableDiffusionXLPipeline", c.SDXL)
        self.refiner = assemble("StableDiffusionXLImg2ImgPipeline", c.SDXL, **refiner())

    @property
    def scheduler(self) -> Any:
        return self.base.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.base.scheduler = scheduler
        self.refiner.scheduler = type(scheduler).from_config(scheduler.config)

    def __call__(self, steps: int, seed: int) -> torch.Tensor:
        common = {**PROMPT, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}
        latents = self.base(**common, **SIZE, denoising_end=HAND_OVER).images
        return tensor(self.refiner(**common, image=latents, denoising_start=HAND_OVER).images)


def kolors(name: str) -> type:
    """A Kolors pipeline. Its module imports sentencepiece for a tokenizer that no run here uses."""
    with unittest.mock.patch.dict(sys.modules):
        if importlib.util.find_spec("sentencepiece") is None:
            sys.modules["sentencepiece"] = unittest.mock.MagicMock()
        path = {
            "KolorsPipeline": "kolors.pipeline_kolors",
            "KolorsImg2ImgPipeline": "kolors.pipeline_kolors_img2img",
            "KolorsPAGPipeline": "pag.pipeline_pag_kolors",
        }[name]
        module = importlib.import_module(f"diffusers.pipelines.{path}")
    return getattr(module, name)


KOLORS_UNET = {**c.XL, "encoder_hid_dim": c.WIDTH, "encoder_hid_dim_type": "text_proj"}
KOLORS = {"vae": c.autoencoder, "unet": lambda: c.unet(**KOLORS_UNET), "scheduler": c.scheduler}


@c.shared
def chatglm() -> torch.nn.Module:
    """Kolors' text encoder, for the one pipeline that drops the embeddings it is given."""
    module = importlib.import_module("diffusers.pipelines.kolors.text_encoder")
    config = module.ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=128,
        hidden_size=c.WIDTH,
        ffn_hidden_size=c.WIDTH,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=256,
        original_rope=True,
    )
    model = module.ChatGLMModel(config).float()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the model is made to be loaded: its weights are only reserved
    return model


class Characters:
    """A tokenizer whose tokens are code points, padded on the left as ChatGLM's."""

    def __call__(self, texts: str | list[str], max_length: int, **_: Any) -> transformers.BatchEncoding:
        texts = [texts] if isinstance(texts, str) else texts
        ids = torch.tensor([[0] * (max_length - len(text)) + [ord(letter) for letter in text] for text in texts])
        places = torch.arange(max_length).expand_as(ids)
        parts = {"input_ids": ids, "attention_mask": (ids > 0).long(), "position_ids": places}
        return transformers.BatchEncoding(parts)


KOLORS_TEXT = {
    "prompt_embeds": lambda: c.embedding(1, 8, c.WIDTH),
    "pooled_prompt_embeds": lambda: c.embedding(1, c.WIDTH),
    "negative_prompt_embeds": lambda: c.embedding(1, 8, c.WIDTH),
    "negative_pooled_prompt_embeds": lambda: c.embedding(1, c.WIDTH),
    "output_type": "latent",
}
"""What ChatGLM would say: its tokenizer needs sentencepiece."""


ENTRIES: list[Entry] = [
    entry("StableDiffusionXLPipeline", FAMILY, c.SDXL, PROMPT | SIZE),
    entry("StableDiffusionXLImg2ImgPipeline", FAMILY, c.SDXL, IMAGE | {"strength": 0.6}, share(0.6)),
    entry("StableDiffusionXLImg2ImgPipeline (refiner)", FAMILY, c.SDXL, IMAGE | {"strength": 0.4}, share(0.4), refiner),
    Entry(
        "StableDiffusionXLPipeline (base, then refiner)",
        FAMILY,
        BaseAndRefiner,
        lambda pipe, steps, seed: pipe(steps, seed),
        whole,
        networks=("base.unet", "refiner.unet"),
    ),
    entry(
        "StableDiffusionXLInpaintPipeline (9 channels)",
        FAMILY,
        c.SDXL,
        IMAGE | SIZE | {"mask_image": c.mask, "strength": 1.0},
        parts=lambda: {"unet": c.unet_xl(in_channels=9)},
    ),
    entry(
        "StableDiffusionXLInpaintPipeline (4 channels)",
        FAMILY,
        c.SDXL,
        IMAGE | SIZE | {"mask_image": c.mask, "strength": 0.6},
        share(0.6),
    ),
    entry(
        "StableDiffusionXLInstructPix2PixPipeline",
        FAMILY,
        c.SDXL,
        IMAGE | SIZE,
        parts=lambda: {"unet": c.unet_xl(in_channels=8)},
    ),
    entry("KolorsPipeline", "Kolors", KOLORS, KOLORS_TEXT | SIZE, cls=lambda: kolors("KolorsPipeline")),
    entry(
        "KolorsImg2ImgPipeline",
        "Kolors",
        KOLORS,
        IMAGE | {"strength": 0.6},
        share(0.6),
        lambda: {"text_encoder": chatglm(), "tokenizer": Characters()},
        cls=lambda: kolors("KolorsImg2ImgPipeline"),
    ),
]
