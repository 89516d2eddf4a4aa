"""Load what would be published as a stranger would: in a process of its own, where `sd_ext` cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..errors import InputError

WAIT = 1800  # seconds for a large pipeline on a slow disk
WITHOUT_US = 'import sys\nsys.modules["sd_ext"] = None\n'

LORA_STRANGER = """
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
loader = {loader}
loaded = loader.lora_state_dict(sys.argv[1], weight_name={name!r}, local_files_only=True, use_safetensors=True)
assert loaded[0] and all("lora" in key for key in loaded[0]), "no LoRA is found in it"
"""


def run_alone(code: str, folder: Path) -> tuple[int, str]:
    """Run Python code in a new process that knows no token, no network and none of the user's modules, and writes none.

    Args:
        code: gets the folder as its first argument.
        folder: what would be published.

    Returns:
        The exit code, and what it said on the standard error.
    """
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name.upper()}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder.parent / "modules")}
    command = [sys.executable, "-I", "-B", "-c", WITHOUT_US + code, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=WAIT, errors="replace")
    except subprocess.TimeoutExpired:
        return 1, f"it did not end within {WAIT // 60} minutes"
    return done.returncode, done.stderr


def read_back(code: str, folder: Path) -> None:
    """Raise `InputError` unless the code ends well; see `run_alone`."""
    ended, said = run_alone(code, folder)
    if ended:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), f"exit code {ended}")
        raise InputError(f"what would be published does not load where sd_ext is not installed: {last}")
