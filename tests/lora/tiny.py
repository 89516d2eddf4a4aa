"""The tiny pipeline of tests/conftest.py with adapters of each kind, as peft computes them and as files."""

from __future__ import annotations

import functools
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

from sd_ext.lora import Lora, from_peft
from tests.conftest import build_tiny_pipeline

KINDS: dict[str, Any] = {
    "lora": functools.partial(LoraConfig, r=3, lora_alpha=5),
    "dora": functools.partial(LoraConfig, r=3, lora_alpha=5, use_dora=True),
    "loha": functools.partial(LoHaConfig, r=3, alpha=5, use_effective_conv2d=True),
    "lokr": functools.partial(LoKrConfig, r=2, alpha=5),
}
TARGETS = {"unet": ["to_q", "to_out.0", "conv1", "proj_in", "conv_shortcut"], "text_encoder": ["q_proj", "fc1"]}


@functools.cache
def trained(kind: str) -> tuple[Any, Lora]:
    """A pipeline whose U-Net and text encoder carry peft's adapters, and the LoRA that these are. Only to be read."""
    pipe = build_tiny_pipeline()
    parts = {part: getattr(pipe, part) for part in TARGETS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for part, model in parts.items():
            inject_adapter_in_model(KINDS[kind](target_modules=TARGETS[part]), model)
            model.eval()
            for name, parameter in model.named_parameters():
                if any(mark in name for mark in (".lora_A", ".lora_B", ".hada_", ".lokr_")):
                    parameter.data = torch.randn_like(parameter) * (0.5 if ".hada_" in name else 0.1)
                elif "magnitude" in name:
                    parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    return pipe, from_peft(parts, base="sd15")


def latents(pipe: Any, prompt: str = "red apple", **arguments: Any) -> torch.Tensor:
    """What the pipeline draws in two steps, before it is decoded."""
    given = {"prompt": prompt, **arguments}
    return pipe(**given, num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0)).images


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    """A copy of all weights that a LoRA can change."""
    return {
        f"{part}.{name}": tensor.clone()
        for part in TARGETS
        for name, tensor in getattr(pipe, part).state_dict().items()
    }
