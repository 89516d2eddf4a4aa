"""A small captioned picture set, and settings small enough to train in moments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "black": (10, 10, 10)}
SHAPES = ("circle", "square", "bar")


def write_pictures(folder: Path, size: int = 32) -> Path:
    """Twelve pictures of a shape in a colour with captions; "black bar" is held out."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True)
    lines = []
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            picture = Image.new("RGB", (size, size), "white")
            pen = ImageDraw.Draw(picture)
            box = (4, 4, size - 5, size - 5) if shape != "bar" else (2, size // 2 - 3, size - 3, size // 2 + 3)
            (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=rgb)
            name = f"{colour}_{shape}.png"
            picture.save(folder / name)
            split = "held_out" if (colour, shape) == ("black", "bar") else "train"
            lines.append(json.dumps({"file_name": name, "text": f"{colour} {shape}", "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory) -> Path:
    """Shared by all tests: copy it before changing a file."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps precision and devices in module state; each test starts without."""
    yield
    import sys

    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()


TINY = {"device": "cpu", "resolution": 16, "batch_size": 4, "warmup": 2, "tracker": "none", "validate_every": 0}
TINY_AUTOENCODER = {**TINY, "channels": (8, 16), "norm_groups": 4, "learning_rate": 3e-3, "ema": 0.9}
TINY_TEXT = {**TINY, "vocabulary": 600, "tokens": 8, "width": 32, "layers": 1, "vision_width": 32, "vision_layers": 1,
             "patch": 8, "projection": 16, "learning_rate": 3e-3, "ema": 0.9}  # fmt: skip
TINY_IMAGE = {**TINY, "channels": (32, 32), "norm_groups": 8, "head_dim": 16, "learning_rate": 3e-3, "ema": 0.9}


@pytest.fixture(scope="session")
def tiny_parts(picture_folder, tmp_path_factory) -> tuple[str, str]:
    """Folders of a trained tiny autoencoder and text encoder."""
    from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig
    from sd_ext.training.train_autoencoder import run as run_autoencoder
    from sd_ext.training.train_text_encoder import run as run_text_encoder

    root = tmp_path_factory.mktemp("parts")
    data = str(picture_folder)
    autoencoder = AutoencoderConfig(data=data, out=str(root / "vae"), steps=30, **TINY_AUTOENCODER)
    text = TextEncoderConfig(data=data, out=str(root / "text"), steps=30, **TINY_TEXT)
    return str(run_autoencoder(autoencoder)), str(run_text_encoder(text))
