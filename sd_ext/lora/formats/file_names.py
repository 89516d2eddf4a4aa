"""The names of LoRA files. Does not import torch."""

from __future__ import annotations

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # what Diffusers looks for in a folder or repository
PEFT_FILE, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def kohya_file(name: str) -> str:
    """The name of the file in kohya's format, for a run called `name`."""
    return f"{name}_kohya.safetensors"


def comfyui_file(name: str) -> str:
    """The name of the plain version of a DoRA for ComfyUI, for a run, or beside a file, called `name`."""
    return f"{name}_comfyui.safetensors"
