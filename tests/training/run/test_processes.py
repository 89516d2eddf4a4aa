"""Two real processes train what one does: the same losses and, to the rounding of float32, the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.data.order import Pass
from sd_ext.training.run import fit as run_module
from sd_ext.training.run.checkpoint import checkpoints
from sd_ext.training.train_text_to_image import TextToImageTask
from sd_ext.training.train_text_to_image import run as run_text_to_image

from ..conftest import TWO_SIZES, exit_codes, image_settings, start_processes

STEPS = 7  # three epochs of three groups: four squares, four wide, and a mixed one of three


@pytest.fixture
def settings(two_sizes_folder, tiny_parts, tmp_path) -> dict:
    """SGD: AdamW divides gradients that are 0 but for their rounding by their own size, so that rounding grows."""
    return image_settings(
        two_sizes_folder, tiny_parts, **TWO_SIZES, steps=STEPS, log_every=1, validate_every=3, preview_steps=1,
        validation_split="held_out", prompts=("red bar",), preview_guidance=1.0, checkpoint_every=50, flip=True,
        optimizer="sgd", optimizer_options=("momentum=0.9",), learning_rate=0.05,
    )  # fmt: skip


def config(settings: dict, out: Path, **cut: int) -> TextToImageConfig:
    return TextToImageConfig.of(**{**settings, **cut, "out": str(out)})


def history(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = history(one), history(other)
    assert [e["step"] for e in ours] == [e["step"] for e in theirs] == list(range(1, STEPS + 1))
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
        assert a["lr"] == b["lr"]
    a, b = weights(one), weights(other)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_two_processes_are_one(settings, tmp_path):
    """Uneven groups of two sizes; with batches of 1 one process has nothing to do in a pass of the mixed group."""
    task = TextToImageTask(config(settings, tmp_path / "plan"))
    groups = [run_module.StepOrder(task.sizes, 1, 4, 0).step(step) for step in range(STEPS)]
    assert {(len(g), len({task.sizes[s] for s in g})) for g in groups} == {(4, 1), (3, 2)}
    for name, cut in {
        "one": {"batch_size": 4},
        "accumulated": {"batch_size": 2, "accumulation": 2},
    }.items():
        run_text_to_image(config(settings, tmp_path / name, **cut))
    there = config(settings, tmp_path / "two", batch_size=1, accumulation=2)
    assert exit_codes(start_processes(lambda process: run_text_to_image(there))) == [0, 0]
    for name in ("accumulated", "two"):
        assert_same_run(tmp_path / "one", tmp_path / name)
    assert "validation_loss" in history(tmp_path / "two")[2]


@pytest.mark.parametrize(
    ("asked", "number"), [pytest.param(0, signal.SIGINT, marks=pytest.mark.slow), (1, signal.SIGTERM)]
)
def test_asked_of_one_process_both_stop_at_the_same_step(settings, tmp_path, number, asked):
    """And go on, as one process this time, to the end of the run that was left alone."""
    settings = {**settings, "validate_every": 0}
    there = config(settings, tmp_path / "stopped", batch_size=2)

    def stopped(process):
        real = run_module.observe

        def observe(run, *rest):
            real(run, *rest)
            if run.step == 3 and process == asked:
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)  # as a launcher that passes the terminal's signal on
            (tmp_path / f"process {process}").write_text(str(run.step))

        run_module.observe = observe
        run_text_to_image(there)

    assert exit_codes(start_processes(stopped)) == [130, 130]
    assert [(tmp_path / f"process {process}").read_text() for process in (0, 1)] == ["3", "3"]
    assert [path.name for path in checkpoints(tmp_path / "stopped" / "checkpoints")] == ["step-00000003"]
    assert not (tmp_path / "stopped" / "model").exists()
    assert exit_codes(start_processes(lambda process: run_text_to_image(there))) == [0, 0]
    if number == signal.SIGTERM:
        run_text_to_image(config(settings, tmp_path / "alone", batch_size=2, accumulation=2))
        assert_same_run(tmp_path / "stopped", tmp_path / "alone")


def test_a_loss_that_is_not_finite_in_one_process_stops_both(settings, tmp_path, monkeypatch, capfd):
    real = TextToImageTask.batch

    def poisoned(self, each: Pass, read, device):
        x, *rest = real(self, each, read, device)
        return (x * float("nan") if each.step == 2 and 0 in each.positions else x, *rest)

    monkeypatch.setattr(TextToImageTask, "batch", poisoned)
    there = config({**settings, "validate_every": 0}, tmp_path / "run", batch_size=2, checkpoint_every=2)
    assert exit_codes(start_processes(lambda process: run_text_to_image(there))) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("the loss is nan at step 3") == 2
    assert said.count("step-00000002") == 2


@pytest.mark.slow
def test_accelerate_launch_and_ctrl_c(settings, tmp_path):
    """The command people type; SIGINT goes to the launcher."""
    there = {**settings, "validate_every": 0, "out": str(tmp_path / "launched"), "batch_size": 2, "steps": 400}

    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    flags = [part for name, value in there.items() for part in ("--" + name.replace("_", "-"), text(value))]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", "0"]
    command = [*launch, "-m", "sd_ext.training.train_text_to_image", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    log = tmp_path / "launched" / "history.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    [reached] = checkpoints(tmp_path / "launched" / "checkpoints")
    assert not (tmp_path / "launched" / "model").exists()
    assert history(tmp_path / "launched")[-1]["step"] == int(reached.name.split("-")[1])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    run_text_to_image(TextToImageConfig.of(**{**there, "out": str(tmp_path / "alone"), "accumulation": 2}))
    assert history(tmp_path / "launched") == history(tmp_path / "alone")
