"""A run killed and resumed ends with the weights of the run left alone, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sd_ext.errors import InputError, TrainingError
from sd_ext.training import run as run_module
from sd_ext.training.checkpoint import checkpoints
from sd_ext.training.configs import AutoencoderConfig, TextToImageConfig
from sd_ext.training.run import Interrupted, make_accelerator, open_run
from sd_ext.training.train_autoencoder import run as run_autoencoder
from sd_ext.training.train_text_to_image import run as run_text_to_image

from .conftest import TINY_AUTOENCODER, TINY_IMAGE

STEPS = 300


def flags(settings: dict) -> list[str]:
    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), text(value))]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_file(p / "diffusion_pytorch_model.safetensors") for p in (one, other))
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def test_killed_and_resumed_run_ends_with_the_same_weights(picture_folder, tmp_path):
    """A real process, a real SIGKILL in the middle; accumulation, averaging and mirroring on."""
    settings = {**TINY_AUTOENCODER, "data": str(picture_folder), "steps": STEPS, "accumulation": 2, "flip": True,
                "checkpoint_every": 5, "clip": 0.5}  # fmt: skip
    command = [sys.executable, "-m", "sd_ext.training.train_autoencoder"]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, *flags({**settings, "out": str(killed)})], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600  # a busy machine
    while len(checkpoints(killed / "checkpoints")) < 2:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = checkpoints(killed / "checkpoints")[-1].name
    assert reached < f"step-{STEPS:08d}"
    assert not (killed / "model").exists()

    subprocess.run([*command, *flags({**settings, "out": str(killed)})], check=True, stdout=subprocess.DEVNULL)
    alone = run_autoencoder(AutoencoderConfig(**settings, out=str(tmp_path / "alone")))
    assert same_weights(killed / "model", alone)
    different = AutoencoderConfig(**{**settings, "seed": 1}, out=str(tmp_path / "other"))
    assert not same_weights(run_autoencoder(different), alone)


class stop_at:
    """Send the process a signal when a run has done `step` steps."""

    def __init__(self, monkeypatch, step: int, number: int):
        real = run_module.observe

        def observe(run, *rest):
            real(run, *rest)
            if run.step == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(run_module, "observe", observe)


@pytest.mark.parametrize("cache", [True, False])
def test_interrupted_text_to_image_resumes_exactly(picture_folder, tiny_parts, tmp_path, monkeypatch, cache):
    settings = {**TINY_IMAGE, "data": str(picture_folder), "autoencoder": tiny_parts[0], "text_encoder": tiny_parts[1],
                "steps": 8, "accumulation": 2, "cache": cache}  # fmt: skip
    alone = run_text_to_image(TextToImageConfig(**settings, out=str(tmp_path / "alone")))
    config = TextToImageConfig(**settings, out=str(tmp_path / "stopped"))
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted, match=r"stopped at step 3.*step-00000003"):
            run_text_to_image(config)
    assert signal.getsignal(signal.SIGTERM) is before
    assert same_weights(run_text_to_image(config) / "unet", alone / "unet")


def test_a_finished_run_is_left_as_it_is(picture_folder, tmp_path):
    config = AutoencoderConfig(data=str(picture_folder), out=str(tmp_path / "run"), steps=2, **TINY_AUTOENCODER)
    result = run_autoencoder(config)
    before = (result / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert run_autoencoder(config) == result
    assert (result / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before


def test_nan_names_the_last_good_checkpoint(picture_folder, tmp_path, monkeypatch):
    config = AutoencoderConfig(
        data=str(picture_folder), out=str(tmp_path / "run"), steps=6, checkpoint_every=2, **TINY_AUTOENCODER
    )
    from sd_ext.training.train_autoencoder import AutoencoderLoss

    real, calls = AutoencoderLoss.forward, []

    def poisoned(self, pixels, noise):
        calls.append(1)
        losses = real(self, pixels, noise)
        return {**losses, "loss": losses["loss"] * float("nan")} if len(calls) == 5 else losses

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderLoss, "forward", poisoned)
        with pytest.raises(TrainingError, match=r"at step 5; last good checkpoint: .*step-00000004"):
            run_autoencoder(config)
    assert run_autoencoder(config).exists()  # and it resumes from there


def test_a_folder_of_something_else_is_refused(picture_folder, tmp_path):
    config = AutoencoderConfig(data=str(picture_folder), out=str(tmp_path / "run"), steps=2, **TINY_AUTOENCODER)
    open_run(config, "autoencoder")
    with pytest.raises(InputError, match="seed 0 -> 1"):
        open_run(AutoencoderConfig(**{**config.__dict__, "seed": 1}), "autoencoder")
    with pytest.raises(InputError, match="other settings"):
        open_run(config, "text encoder")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 0
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a run of this script"):
        open_run(AutoencoderConfig(**{**config.__dict__, "out": str(thesis)}), "autoencoder")
    assert [p.name for p in thesis.iterdir()] == ["chapter1.txt"]
    with pytest.raises(InputError, match="give --out"):
        open_run(AutoencoderConfig(), "autoencoder")


def test_a_damaged_checkpoint_is_named(picture_folder, tmp_path):
    config = AutoencoderConfig(
        data=str(picture_folder), out=str(tmp_path / "run"), steps=4, checkpoint_every=2, **TINY_AUTOENCODER
    )
    shutil.rmtree(run_autoencoder(config))
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "optimizer.safetensors").write_bytes(b"?")
    with pytest.raises(TrainingError, match="step-00000004 is damaged"):
        run_autoencoder(config)


def test_devices_and_precisions_that_are_not_there():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(InputError, match="no CUDA device"):
        make_accelerator(AutoencoderConfig(device="cuda"))
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        make_accelerator(AutoencoderConfig(device="cpu", mixed_precision="fp16"))
