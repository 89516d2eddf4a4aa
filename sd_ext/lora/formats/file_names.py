"""What files with a LoRA are called. Imports no torch."""

from __future__ import annotations

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # what Diffusers looks for in a folder or repository
PEFT_FILE, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def kohya_file(name: str) -> str:
    """The file for AUTOMATIC1111 and ComfyUI of a run that is called `name`."""
    return f"{name}_kohya.safetensors"
