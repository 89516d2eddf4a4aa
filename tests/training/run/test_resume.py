"""A run killed, stopped or failed, and resumed, ends with the weights of the run left alone, bit for bit."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError, TrainingError
from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig, TextToImageConfig
from sd_ext.training.run import fit as run_module
from sd_ext.training.run.checkpoint import checkpoints
from sd_ext.training.run.fit import Interrupted, make_accelerator, open_run
from sd_ext.training.run.folder import alone
from sd_ext.training.train_autoencoder import run as run_autoencoder
from sd_ext.training.train_text_encoder import run as run_text_encoder
from sd_ext.training.train_text_to_image import TextToImageTask
from sd_ext.training.train_text_to_image import run as run_text_to_image

from ...few import few
from ..conftest import TINY_AUTOENCODER, TINY_TEXT, TWO_SIZES, image_settings, start_processes

STEPS = 8
OPTIMIZERS = {
    "adamw": {"ema": 0.9},
    "prodigy": {"ema": 0.9, "learning_rate": 1.0},
    "schedulefree-adamw": {"ema": 0.0, "lr_schedule": "constant"},
}


@pytest.fixture
def settings(two_sizes_folder, tiny_parts) -> dict:
    """Everything that is random or remembered: mirroring, tags, buckets, accumulation, averages, validation."""
    return image_settings(
        two_sizes_folder, tiny_parts, **TWO_SIZES, steps=STEPS, batch_size=2, accumulation=2, flip=True,
        shuffle_tags=True, tag_dropout=0.2, tag_separator=" ", offset_noise=0.1, clip=0.5, loss_weighting="min_snr",
        checkpoint_every=3, log_every=1, validate_every=5, preview_steps=1, prompts=("red bar",),
        validation_split="held_out", workers=2,
    )  # fmt: skip


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(next(model.glob("**/diffusion_pytorch_model.safetensors")))


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def history(out: str | Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(out) / "history.jsonl").read_text().splitlines()]


def kill_when(config, ready) -> bool:
    """Start a run in a process of its own, and SIGKILL it once `ready()`; False if it ended before."""
    [process] = start_processes(lambda _: run_text_to_image(config), 1)
    while process.is_alive() and not ready():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def logged(out: str) -> int:
    log = Path(out) / "history.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_killed_runs_end_with_the_same_weights(settings, tmp_path):
    """Real SIGKILLs, before the first checkpoint and after it."""
    alone = run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "alone")))
    config = TextToImageConfig.of(**settings, out=str(tmp_path / "killed"))
    for step in (1, 4):
        assert kill_when(config, lambda step=step: logged(config.folder.out) >= step), (
            "it ended before it could be killed"
        )
    assert not (tmp_path / "killed" / "model").exists()
    assert len(checkpoints(tmp_path / "killed" / "checkpoints")) >= 1
    assert same_weights(run_text_to_image(config) / "unet", alone / "unet")
    assert history(config.folder.out) == history(tmp_path / "alone")
    assert [entry["step"] for entry in history(config.folder.out)] == list(range(1, STEPS + 1))
    assert (
        len({entry["loss"] for entry in history(config.folder.out)}) == STEPS
    )  # or equal histories would prove little


@pytest.mark.slow
def test_killed_at_twenty_random_moments(settings, tmp_path):
    """While it encodes, trains, validates, saves, or writes the result."""
    draw, killed = random.Random(0), 0
    alone = run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "alone")))
    before = time.monotonic()
    run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "timed")))
    whole = time.monotonic() - before
    config = TextToImageConfig.of(**settings, out=str(tmp_path / "killed"))
    while killed < 20:
        end = time.monotonic() + draw.uniform(0, whole)
        if kill_when(config, lambda end=end: time.monotonic() > end):
            killed += 1
        else:
            assert same_weights(tmp_path / "killed" / "model" / "unet", alone / "unet")
            assert history(config.folder.out) == history(tmp_path / "alone")
            shutil.rmtree(config.folder.out)
    assert same_weights(run_text_to_image(config) / "unet", alone / "unet")
    assert history(config.folder.out) == history(tmp_path / "alone")


class stop_at:
    """Send the process a signal when a run has done `step` steps."""

    def __init__(self, monkeypatch, step: int, number: int):
        real = run_module.observe

        def observe(run, *rest):
            real(run, *rest)
            if run.step == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(run_module, "observe", observe)


@pytest.mark.parametrize(
    ("cache", "number"), [(True, signal.SIGTERM), pytest.param(False, signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_resumes_exactly(settings, tmp_path, monkeypatch, cache, number):
    """What each step is trained on, too: samples, captions, timesteps, noise, latents."""
    seen: dict[str, dict[int, list]] = {"alone": {}, "stopped": {}}
    real, crop = TextToImageTask.batch, {} if cache else {"crop": "random"}

    def spy(self, each, read, device):
        made = real(self, each, read, device)
        flat = torch.cat([made[0].flatten(), made[1].float(), made[2].flatten(), made[5]["states"].flatten()])
        seen[Path(self.config.folder.out).name].setdefault(each.step, []).append((each.samples, flat))
        return made

    monkeypatch.setattr(TextToImageTask, "batch", spy)
    settings = {**settings, "cache": cache, "steps": 6, **crop}
    alone = run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "alone")))
    config = TextToImageConfig.of(**settings, out=str(tmp_path / "stopped"))
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        stop_at(patch, 4, number)
        with pytest.raises(Interrupted, match=r"stopped at step 4.*step-00000004"):
            run_text_to_image(config)
    assert signal.getsignal(number) is before
    seen["stopped"] = {}
    assert same_weights(run_text_to_image(config) / "unet", alone / "unet")
    assert sorted(seen["stopped"]) == [4, 5]
    for step, passes in seen["stopped"].items():
        for (samples, drawn), (wanted, should) in zip(passes, seen["alone"][step], strict=True):
            assert samples == wanted
            assert torch.equal(drawn, should)


@pytest.mark.slow
def test_epochs_differ_and_are_the_same_after_a_resume(settings, tmp_path, monkeypatch):
    """Accelerate's seedable sampler replays the first epoch's order on resume (accelerate #2016, #2823, #3996)."""
    orders: dict[int, tuple] = {}
    real = TextToImageTask.read

    def spy(self, each):
        orders.setdefault(each.step, {})[each.positions[0]] = each.samples
        return real(self, each)

    monkeypatch.setattr(TextToImageTask, "read", spy)
    settings = {**settings, "validate_every": 0, "steps": 6, "workers": 0}
    run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "alone")))
    alone = {step: orders[step] for step in range(6)}
    epochs = [str([sorted(alone[step].items()) for step in range(first, first + 3)]) for first in (0, 3)]
    assert len(set(epochs)) == 2
    config = TextToImageConfig.of(**settings, out=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        stop_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run_text_to_image(config)
    orders.clear()
    run_text_to_image(config)
    assert orders == {step: alone[step] for step in range(4, 6)}


@pytest.mark.slow
def test_looking_at_a_run_does_not_change_it(settings, tmp_path):
    """Previews, validation, the log, workers, checkpoints: none leaves a trace in the weights."""
    settings = {**settings, "steps": 4, "validate_every": 2}
    looked = run_text_to_image(TextToImageConfig.of(**settings, out=str(tmp_path / "looked")))
    free = {"validate_every": 0, "log_every": 7, "workers": 0, "checkpoint_every": 100, "keep": 1}
    unseen = run_text_to_image(TextToImageConfig.of(**{**settings, **free}, out=str(tmp_path / "unseen")))
    assert same_weights(looked / "unet", unseen / "unet")
    averaging = {**settings, "optimizer": "schedulefree-adamw", **OPTIMIZERS["schedulefree-adamw"]}
    looked = run_text_to_image(TextToImageConfig.of(**averaging, out=str(tmp_path / "averaging looked")))
    unseen = run_text_to_image(TextToImageConfig.of(**{**averaging, **free}, out=str(tmp_path / "averaging unseen")))
    assert same_weights(looked / "unet", unseen / "unet")


@pytest.mark.parametrize("optimizer", few(OPTIMIZERS, lambda name: name == "schedulefree-adamw"))
def test_a_killed_autoencoder_resumes_exactly_with_any_optimizer(picture_folder, tmp_path, monkeypatch, optimizer):
    """Also with those that keep weights of their own, or estimate the rate as they go."""
    settings = {**TINY_AUTOENCODER, "data": str(picture_folder), "steps": 6, "accumulation": 2, "flip": True,
                "checkpoint_every": 2, "clip": 0.5, "optimizer": optimizer, **OPTIMIZERS[optimizer]}  # fmt: skip
    alone = run_autoencoder(AutoencoderConfig.of(**settings, out=str(tmp_path / "alone")))
    config = AutoencoderConfig.of(**settings, out=str(tmp_path / "killed"))

    class Killed(BaseException):
        pass

    def die(run, *rest):
        if run.step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        real = run_module.observe
        patch.setattr(run_module, "observe", lambda *given: (real(*given), die(*given))[0])
        with pytest.raises(Killed):
            run_autoencoder(config)
    assert [p.name for p in checkpoints(tmp_path / "killed" / "checkpoints")] == ["step-00000002", "step-00000004"]
    assert same_weights(run_autoencoder(config), alone)


def test_a_finished_run_is_left_as_it_is(picture_folder, tmp_path):
    config = AutoencoderConfig.of(data=str(picture_folder), out=str(tmp_path / "run"), steps=2, **TINY_AUTOENCODER)
    result = run_autoencoder(config)
    before = (result / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert run_autoencoder(config) == result
    assert (result / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before


def test_nan_names_step_samples_and_last_good_checkpoint(settings, tmp_path, monkeypatch):
    config = TextToImageConfig.of(
        **{**settings, "checkpoint_every": 2, "validate_every": 0, "steps": 6}, out=str(tmp_path / "run")
    )
    real, poisoned = TextToImageTask.batch, []

    def poison(self, each, read, device):
        x, *rest = real(self, each, read, device)
        if each.step == 4:
            poisoned.append(self.names(each))
        return (x * float("nan") if each.step == 4 else x, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TextToImageTask, "batch", poison)
        with pytest.raises(TrainingError, match=r"at step 5 .*; last good checkpoint: .*step-00000004") as caught:
            run_text_to_image(config)
    assert f"(samples: {'; '.join(poisoned)})" in str(caught.value)
    assert ".png" in poisoned[0]
    assert run_text_to_image(config).exists()  # and it resumes from there


def test_a_resume_with_other_samples_or_another_base_is_refused(settings, tiny_parts, tmp_path, monkeypatch):
    """Wherever they lie: what counts is their content."""
    folder, vae = tmp_path / "set", tmp_path / "vae"
    shutil.copytree(settings["data"], folder)
    shutil.copytree(tiny_parts[0], vae)
    settings = {**settings, "data": str(folder), "autoencoder": str(vae), "out": str(tmp_path / "run")}
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run_text_to_image(TextToImageConfig.of(**settings))

    def refused(match, **values):
        with pytest.raises(InputError, match=match):
            run_text_to_image(TextToImageConfig.of(**{**settings, **values}))

    whole = (folder / "red_bar.png").read_bytes()
    (folder / "red_bar.png").write_bytes((folder / "blue_bar.png").read_bytes())
    refused("other settings .samples ")
    (folder / "red_bar.png").write_bytes(whole)
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(lines.replace("red bar", "crimson bar"))
    refused("other settings .samples ")
    (folder / "metadata.jsonl").write_text(lines)
    refused("tag_dropout 0.2 -> 0.3, samples ", tag_dropout=0.3)
    kept = (vae / "diffusion_pytorch_model.safetensors").read_bytes()
    tensors = load_file(vae / "diffusion_pytorch_model.safetensors")
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, vae / "diffusion_pytorch_model.safetensors")
    refused("other settings .base ")
    (vae / "diffusion_pytorch_model.safetensors").write_bytes(kept)
    folder.rename(tmp_path / "moved")
    moved = {**settings, "data": str(tmp_path / "moved"), "steps": STEPS}
    assert run_text_to_image(TextToImageConfig.of(**moved)).exists()


def test_another_unet_or_noise_schedule_is_another_base(picture_folder, tiny_pipeline_dir, tmp_path):
    model = shutil.copytree(tiny_pipeline_dir, tmp_path / "model")
    config = TextToImageConfig.of(model=str(model), data=str(picture_folder), out=str(tmp_path / "run"), batch_size=4)
    base = TextToImageTask(config).parts["base"]
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    second = TextToImageTask(config).parts["base"]
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.001 for name, tensor in load_file(weights).items()}, weights)
    assert len({base, second, TextToImageTask(config).parts["base"]}) == 3


@pytest.mark.parametrize(
    ("run", "cls", "tiny"),
    [(run_autoencoder, AutoencoderConfig, TINY_AUTOENCODER), (run_text_encoder, TextEncoderConfig, TINY_TEXT)],
)
def test_the_other_scripts_refuse_other_samples_too(run, cls, tiny, picture_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(picture_folder, tmp_path / "set")
    config = cls.of(data=str(folder), out=str(tmp_path / "run"), steps=3, **tiny)
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run(config)
    (folder / "red_bar.png").write_bytes((folder / "blue_bar.png").read_bytes())
    with pytest.raises(InputError, match=r"other settings \(samples "):
        run(config)


def test_a_folder_of_something_else_is_refused(picture_folder, tmp_path):
    config = AutoencoderConfig.of(data=str(picture_folder), out=str(tmp_path / "run"), steps=2, **TINY_AUTOENCODER)
    open_run(config, "autoencoder")
    with pytest.raises(InputError, match="seed 0 -> 1"):
        open_run(config.change(seed=1), "autoencoder")
    with pytest.raises(InputError, match="other settings"):
        open_run(config, "text encoder")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 0
    (tmp_path / "run" / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"run\.json must be an object .*; choose another --out"):
        open_run(config, "autoencoder")
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a run of this script"):
        open_run(config.change(out=str(thesis)), "autoencoder")
    assert [p.name for p in thesis.iterdir()] == ["chapter1.txt"]
    with pytest.raises(InputError, match="give --out"):
        open_run(AutoencoderConfig(), "autoencoder")


def test_a_folder_has_one_run_at_a_time(picture_folder, tmp_path):
    config = AutoencoderConfig.of(data=str(picture_folder), out=str(tmp_path / "run"), steps=1, **TINY_AUTOENCODER)
    with alone(config, "autoencoder", {}, first=True):
        with alone(config, "autoencoder", {}, first=False):  # the run's other processes
            pass
        with pytest.raises(InputError, match=rf"process {os.getpid()} .* trains in {tmp_path / 'run'} already; wait"):
            run_autoencoder(config)
    assert run_autoencoder(config).exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(picture_folder, tmp_path, caplog):
    config = AutoencoderConfig.of(
        data=str(picture_folder), out=str(tmp_path / "run"), steps=4, checkpoint_every=2, **TINY_AUTOENCODER
    )
    alone = run_autoencoder(config).rename(tmp_path / "alone")
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "optimizer.safetensors").write_bytes(b"?")
    again = run_autoencoder(config)
    assert "step-00000004 is damaged" in caplog.text and "goes on from" in caplog.text
    assert same_weights(again, alone)


def test_devices_and_precisions_that_are_not_there():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(InputError, match="no CUDA device"):
        make_accelerator(AutoencoderConfig.of(device="cuda"))
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        make_accelerator(AutoencoderConfig.of(device="cpu", mixed_precision="fp16"))


def test_what_a_launcher_says_of_accumulation_is_not_done_twice(picture_folder, tmp_path, monkeypatch):
    """`accelerate config` may leave it in the environment, where accelerate would divide every gradient by it."""
    settings = {**TINY_AUTOENCODER, "data": str(picture_folder), "steps": 2, "accumulation": 2}
    alone = run_autoencoder(AutoencoderConfig.of(**settings, out=str(tmp_path / "alone")))
    from ..conftest import forget_accelerate_state

    forget_accelerate_state()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert same_weights(run_autoencoder(AutoencoderConfig.of(**settings, out=str(tmp_path / "told"))), alone)
