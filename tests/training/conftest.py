"""A small captioned picture set, and settings small enough to train in moments."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import traceback
from multiprocessing import get_context
from pathlib import Path

import pytest

from .lora_cases import bases, lora_run  # noqa: F401  # fixtures of the tests of LoRA runs

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220), "black": (10, 10, 10)}
SHAPES = ("circle", "square", "bar")


def write_pictures(folder: Path, size: int = 32, wide: tuple[str, ...] = ()) -> Path:
    """Twelve pictures of a shape in a colour with captions; "black bar" is held out.

    Those whose caption has a word of `wide` are stretched to 52 x 32.
    """
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
            if {colour, shape} & set(wide):
                picture = picture.resize((52, 32))
            picture.save(folder / name)
            split = "held_out" if (colour, shape) == ("black", "bar") else "train"
            lines.append(json.dumps({"file_name": name, "text": f"{colour} {shape}", "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory) -> Path:
    """Shared by all tests: copy it before changing a file."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="session")
def two_sizes_folder(tmp_path_factory) -> Path:
    """Six squares and five wide pictures to train on: in groups of four, one of each and a mixed group of three."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "two_sizes", wide=("bar", "black"))


def forget_accelerate_state() -> None:
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps precision and devices in module state; each test starts without."""
    yield
    forget_accelerate_state()


TINY = {"device": "cpu", "resolution": 16, "batch_size": 4, "warmup": 2, "tracker": "none", "validate_every": 0}
TINY_AUTOENCODER = {**TINY, "channels": (8, 16), "norm_groups": 4, "learning_rate": 3e-3, "ema": 0.9}
TINY_TEXT = {**TINY, "vocabulary": 600, "tokens": 8, "width": 32, "layers": 1, "vision_width": 32, "vision_layers": 1,
             "patch": 8, "projection": 16, "learning_rate": 3e-3, "ema": 0.9}  # fmt: skip
TINY_IMAGE = {**TINY, "channels": (32, 32), "attention": (0, 1), "norm_groups": 8, "head_dim": 16,
              "learning_rate": 3e-3, "ema": 0.9}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_parts(picture_folder, tmp_path_factory) -> tuple[str, str]:
    """Folders of a trained tiny autoencoder and text encoder."""
    from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig
    from sd_ext.training.train_autoencoder import run as run_autoencoder
    from sd_ext.training.train_text_encoder import run as run_text_encoder

    root = tmp_path_factory.mktemp("parts")
    data = str(picture_folder)
    autoencoder = AutoencoderConfig.of(data=data, out=str(root / "vae"), steps=30, **TINY_AUTOENCODER)
    text = TextEncoderConfig.of(data=data, out=str(root / "text"), steps=30, **TINY_TEXT)
    return str(run_autoencoder(autoencoder)), str(run_text_encoder(text))


def image_settings(folder: Path, parts: tuple[str, str], **settings) -> dict:
    """Of a tiny text-to-image run."""
    return {**TINY_IMAGE, "data": str(folder), "autoencoder": parts[0], "text_encoder": parts[1], **settings}


TWO_SIZES = {"buckets": True, "bucket_step": 4}  # 16 x 16 and 12 x 20


@pytest.fixture
def metrics(monkeypatch) -> list[dict[str, float]]:
    """Every metric the loop yields."""
    from sd_ext.training.run import loop

    seen, real = [], loop.train

    def spy(run):
        for values in real(run):
            seen.append(values)
            yield values

    monkeypatch.setattr("sd_ext.training.run.fit.train", spy)
    return seen


def free_port() -> int:
    """Below the ports that systems give out, and from another ten than other test processes: none takes it first."""
    first = 20_000 + os.getpid() * 10 % 12_000
    for port in range(first, first + 10):
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"the ports from {first} on are taken")


def start_processes(function, count: int = 2) -> list:
    """`function(process)` in processes that accelerate joins (gloo); their exit codes are those of `main`."""
    port = free_port()

    def work(process: int) -> None:
        where = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in where.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        forget_accelerate_state()
        code = 1
        try:
            function(process)
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    started = [get_context("fork").Process(target=work, args=(process,)) for process in range(count)]
    for each in started:
        each.start()
    return started


def exit_codes(processes: list) -> list[int]:
    """Wait for processes; those that hang are killed."""
    for each in processes:
        each.join(120)
        if each.is_alive():
            each.kill()
            each.join()
    return [each.exitcode for each in processes]
