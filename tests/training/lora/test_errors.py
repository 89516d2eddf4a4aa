"""What cannot work is refused before anything loads, and what breaks a run leaves its last checkpoint whole."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from sd_ext import checked
from sd_ext.errors import InputError, ModelError, TrainingError
from sd_ext.models import Folder
from sd_ext.training import train_lora
from sd_ext.training.diffusion.task import DiffusionTask
from sd_ext.training.encoding import cache
from sd_ext.training.lora import estimate, result
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.plan import plan_lora
from sd_ext.training.run import checkpoint
from sd_ext.training.run import history as history_module
from sd_ext.training.run.checkpoint import checkpoints
from sd_ext.training.settings.written import make_config

from ...few import few

SMALL = {"device": "cpu", "tracker": "none", "resolution": 32, "batch_size": 4, "steps": 4, "rank": 2, "log_every": 1,
         "checkpoint_every": 2, "validate_every": 0, "buckets": False, "learning_rate": 0.01,
         "memory_check": False}  # fmt: skip
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def settings(picture_folder, tiny_pipeline_dir, tmp_path) -> dict[str, Any]:
    return {**SMALL, "data": str(picture_folder), "model": str(tiny_pipeline_dir), "out": str(tmp_path / "run")}


def plan(settings: dict[str, Any], **values: Any) -> list[str]:
    return list(plan_lora(make_config(LoraConfig, {**settings, **values}, "here")))


def run(settings: dict[str, Any], **values: Any) -> Path:
    return train_lora.run(make_config(LoraConfig, {**settings, **values}, "here"))


@pytest.fixture
def no_weights(monkeypatch) -> list[str]:
    """Parts that were loaded; loading one fails."""
    loaded: list[str] = []
    real = Folder.load

    def load(self: Folder, part: str, *rest: Any) -> Any:
        if part.startswith("tokenizer"):
            return real(self, part, *rest)
        loaded.append(part)
        raise AssertionError(f"{part} was loaded")

    monkeypatch.setattr(Folder, "load", load)
    return loaded


CONTRADICTIONS = [
    {"init": "pissa", "method": "loha"},
    {"init": "olora", "method": "dora"},
    {"init": "pissa", "base_precision": "int8"},
    {"text_encoder": True, "clip_skip": 2},
    {"method": "lokr", "rslora": True},
    {"method": "loha", "lora_plus": 16.0},
    {"lokr_factor": 8, "method": "loha"},
    {"base_precision": "bf16", "mixed_precision": "no"},
    {"text_encoder_rank": 4, "text_encoder": False},
    {"text_encoder_learning_rate": 1e-5, "text_encoder": False},
    {"class_data": "dogs", "class_prompt": ""},
    {"class_prompt": "a dog", "class_data": ""},
    {"token_init": "cat", "tokens": ()},
    {"token_vectors": 2, "tokens": ()},
    {"token_steps": 9, "tokens": ()},
]


@pytest.mark.parametrize("values", CONTRADICTIONS, ids=lambda values: "-".join(values))
def test_settings_that_contradict_each_other(values):
    with pytest.raises(InputError, match="settings contradict each other"):
        make_config(LoraConfig, values, "here")
    first = next(iter(values))
    make_config(LoraConfig, {name: value for name, value in values.items() if name != first}, "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "my/lora"}, "name is my/lora; it must be a plain file name"),
        ({"name": ".."}, "must be a plain file name"),
        ({"name": ""}, "must be a plain file name"),
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ()}, "targets is empty"),
        ({"method": "lorra"}, "method is 'lorra'; it can be lora, dora, loha, lokr"),
        ({"tokens": "<a>,<a>"}, "give different words without spaces"),
        ({"text_encoder_rnk": 4}, "unknown setting in here: 'text_encoder_rnk'; did you mean 'text_encoder_rank'"),
    ],
)
def test_settings_that_mean_nothing(values, message):
    with pytest.raises(InputError) as caught:
        make_config(LoraConfig, values, "here")
    assert message in str(caught.value)


def without(part: str) -> Callable[[Path], Any]:
    return lambda folder: shutil.rmtree(folder / part)


def pickled(folder: Path) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), folder / "text_encoder" / "pytorch_model.bin")
    weights.unlink()


def renamed(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))


def listed(**parts: Any) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        index = folder / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), **parts}))

    return edit


SD3 = {"_class_name": "StableDiffusion3Pipeline", "unet": [None, None], "transformer": ["diffusers", "SD3Transformer"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("unet"), "incomplete: it has no folder unet"),
        (without("tokenizer"), "incomplete: it has no folder tokenizer"),
        (without("scheduler"), "has no folder scheduler"),
        (pickled, r"text_encoder holds no weights as safetensors; pytorch_model.bin would be read as pickle"),
        (renamed, r"there is diffusion_pytorch_model.fp16.safetensors: give its variant"),
        (listed(**SD3), "is a StableDiffusion3Pipeline without unet"),
        (lambda folder: (folder / "model_index.json").unlink(), r"no model_index.json"),
    ],
    ids=["no unet", "no tokenizer", "no scheduler", "pickle", "variant", "SD3", "no index"],
)
def test_a_base_model_of_another_kind(settings, tiny_pipeline_dir, tmp_path, no_weights, change, message):
    model = shutil.copytree(tiny_pipeline_dir, tmp_path / "own")
    change(model)
    for do in (plan, run):
        with pytest.raises(ModelError, match=message):
            do(settings, model=str(model))
    assert not (tmp_path / "run").exists()
    assert not no_weights


def test_a_base_model_in_a_single_file_or_none(settings, tmp_path, no_weights):
    for name, message in {
        "model.ckpt": "is a pickle",
        "model.safetensors": "is a text",
    }.items():
        (tmp_path / name).write_bytes(b"?")
        with pytest.raises(ModelError, match=message):
            run(settings, model=str(tmp_path / name))
    with pytest.raises(ModelError, match="no model named"):
        run(settings, model="")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamw8bit"}, "bitsandbytes.*pip install bitsandbytes"),
        ({"optimizer": "no_such_package.Adam"}, "would import the package no_such_package.*--allow-import"),
        ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        (
            {"attention_backend": "xformers"},
            "attention_backend is xformers, which needs xformers: pip install xformers",
        ),
        ({"targets": "atention"}, "unknown target 'atention'; did you mean 'attention'"),
        ({"blocks": "upper"}, "no module's name starts with upper; there are"),
        ({"data": ""}, "no pictures named"),
        ({"data": "/no/such/folder"}, "no folder of pictures at /no/such/folder"),
        ({"split": "trian"}, "no pictures with split 'trian'"),
        ({"resolution": 60}, "squares of 60 pixels are not a multiple of 8"),
        ({"tokens": "<cat>"}, "<cat> stands in no caption"),
        ({"tokens": "a", "prefix": "a"}, "knows 'a' already|choose another"),
    ],
)
def test_what_a_run_would_meet_is_said_by_its_plan(settings, tmp_path, no_weights, values, message):
    if values.get("optimizer") == "adamw8bit" and _installed("bitsandbytes"):
        pytest.skip("bitsandbytes is here")
    with pytest.raises(InputError, match=message):
        plan(settings, **values)
    assert not (tmp_path / "run").exists()
    assert not no_weights


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_a_missing_package_is_said_before_the_run_begins(settings, tmp_path, no_weights):
    with pytest.raises(InputError, match="no_such_package") as refused:
        run(settings, optimizer="no_such_package.Adam", allow_import=True)
    assert "pip install" not in str(refused.value)  # for a name nobody knows, that would be an invitation
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(settings, tmp_path, no_weights):
    (tmp_path / "file").write_text("")
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.txt").write_text("years of work")
    for out, message in {"file/run": "cannot write to", "thesis": "is not a run of this script"}.items():
        for do in (plan, run):
            with pytest.raises(InputError, match=message):
                do(settings, out=str(tmp_path / out))
    with pytest.raises(InputError, match="give --out DIR"):
        run(settings, out="")
    assert [path.name for path in thesis.iterdir()] == ["chapter1.txt"]


# Data.


@pytest.fixture
def poor(picture_folder, tmp_path) -> Path:
    """Seven pictures: one is no picture, one is cut off, one is tiny, one has no caption, one is missing."""
    folder = tmp_path / "poor"
    folder.mkdir()
    for name in ("red_bar.png", "red_circle.png", "blue_bar.png", "black_circle.png"):
        shutil.copy(picture_folder / name, folder / name)
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "red_bar.png").read_bytes()[:60])
    Image.new("RGB", (8, 40)).save(folder / "tiny.png")
    names = ["red_bar", "red_circle", "blue_bar", "text", "cut", "tiny", "gone"]
    lines = [json.dumps({"file_name": f"{name}.png", "text": name}) for name in names]
    lines.append(json.dumps({"file_name": "black_circle.png", "text": ""}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_what_is_left_out_is_named(settings, poor, capsys):
    lines = plan(settings, data=str(poor))
    told = capsys.readouterr().err
    for name, why in {"text.png": "no picture that Pillow can read", "cut.png": "", "gone.png": "",
                      "tiny.png": "too small: 8 x 40", "black_circle.png": "no caption"}.items():  # fmt: skip
        assert f"{name}: {why}" in told
    assert "red_bar" not in told
    assert next(line for line in lines if line.startswith("pictures")).endswith("3, 3 samples an epoch, 5 left out")
    assert (run(settings, data=str(poor)) / "pytorch_lora_weights.safetensors").is_file()


def test_nothing_left_is_an_error(settings, poor, no_weights):
    for name in ("red_bar", "red_circle", "blue_bar"):
        (poor / f"{name}.png").write_bytes(b"?")
    for do in (plan, run):
        with pytest.raises(InputError, match=r"none of 8 pictures can be used; first: red_bar\.png: no picture"):
            do(settings, data=str(poor))


# Memory.


def test_too_little_memory(settings, monkeypatch, tmp_path, no_weights):
    """Said with the estimate and what would help; the plan is printed all the same."""
    monkeypatch.setattr(estimate, "free_memory", lambda device: 10**6)
    monkeypatch.setattr("sd_ext.training.lora.plan.free_memory", lambda device: 10**6)
    pattern = (
        r"the run needs about \d+ MB \(weights .*\), 1 MB are free; set gradient_checkpointing = true, or a smaller"
    )
    with pytest.raises(InputError, match=pattern) as caught:
        run(settings, memory_check=True)
    assert "a resolution below 32" in str(caught.value)
    assert "memory_check = false" in str(caught.value)
    assert not (tmp_path / "run").exists()
    lines: list[str] = []
    with pytest.raises(InputError, match=pattern):
        lines.extend(plan_lora(make_config(LoraConfig, {**settings, "memory_check": True}, "here")))
    assert lines[-1].startswith("memory")
    assert plan(settings, memory_check=False)


def test_advice_is_what_can_still_be_done(settings):
    def told(needed: tuple[int, ...], **values: Any) -> str:
        made = estimate.Estimate(1, 1, *needed, trained=1)
        return ", ".join(estimate.advice(made, make_config(LoraConfig, {**settings, **values}, "here")))

    assert "gradient_checkpointing" in told((3, 2, 1))
    assert "gradient_checkpointing" not in told((3, 2, 1), gradient_checkpointing=True)
    assert "validate_every = 0" in told((1, 2, 3))
    assert "validate_every" not in told((3, 2, 1))
    assert "batch_size" not in told((3, 2, 1), batch_size=1)
    assert "bf16" not in told((3, 2, 1), mixed_precision="bf16")
    assert "int8" not in told((3, 2, 1), base_precision="int8")


# What breaks a run.


@pytest.fixture(scope="module")
def finished(picture_folder, tiny_pipeline_dir, tmp_path_factory) -> Path:
    """The same run, left alone."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return run({**SMALL, "data": str(picture_folder), "model": str(tiny_pipeline_dir), "out": str(out)})


def raising(real: Callable, error: Exception, when: Callable[..., bool]) -> Callable:
    def do(*args: Any, **named: Any) -> Any:
        if when(*args):
            raise error
        return real(*args, **named)

    return do


def at_checkpoint(patch: pytest.MonkeyPatch) -> None:
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    patch.setattr(checked, "save_file", raising(checked.save_file, error, lambda _, path, __: "0004" in str(path)))


def at_history(patch: pytest.MonkeyPatch) -> None:
    add = history_module.History.add
    patch.setattr(history_module.History, "add", raising(add, FULL, lambda _, step, metrics: step == 3))


def at_export(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(result, "save_lora", raising(result.save_lora, FULL, lambda _, path, kind: kind == "kohya"))


@pytest.mark.parametrize(("fill", "step"), few([(at_checkpoint, 2), (at_history, 2), (at_export, 4)], 2))
def test_a_full_disk_leaves_the_last_checkpoint_whole(settings, finished, tmp_path, fill, step):
    """And once there is room, the run goes on to what it would have been."""
    with pytest.MonkeyPatch.context() as patch:
        fill(patch)
        with pytest.raises(TrainingError, match=rf"(?s)[Nn]o space left.*whole checkpoint: .*step-0000000{step}"):
            run(settings)
    found = checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoint.load(found[-1])[1]["step"] == step
    assert not (tmp_path / "run" / "model").exists()
    assert_finished(run(settings), finished)


def assert_finished(folder: Path, expected: Path) -> None:
    for name in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()
    assert {path.name for path in folder.parent.iterdir()} == {path.name for path in expected.parent.iterdir()}


def test_a_full_disk_while_encoding_keeps_what_is_encoded(settings, finished, tmp_path):
    count = []
    with pytest.MonkeyPatch.context() as patch:
        save = raising(cache.save_checked, FULL, lambda *_: count.append(1) or len(count) > 5)
        patch.setattr(cache, "save_checked", save)
        with pytest.raises(TrainingError, match="what is cached so far is kept"):
            run(settings)
    assert len(list((tmp_path / "run" / "cache").glob("*/*.safetensors"))) == 5
    assert not list((tmp_path / "run" / "cache").glob("*/.*"))
    assert_finished(run(settings), finished)


def test_a_loss_that_is_no_number(settings, finished, monkeypatch):
    """The step, the names of its pictures, and the last checkpoint, from which the run can go on."""
    real, seen = DiffusionTask.batch, []

    def batch(self: DiffusionTask, each: Any, read: Any, device: torch.device) -> tuple:
        x, *rest = real(self, each, read, device)
        if each.step == 2:
            seen.extend(self.pictures.samples[s].item.name for s in each.samples)
        return (x * float("nan") if each.step == 2 else x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTask, "batch", batch)
        with pytest.raises(
            TrainingError, match=r"the loss is nan at step 3 .*last good checkpoint: .*step-00000002"
        ) as e:
            run(settings)
    assert len(seen) == 4
    assert all(name in str(e.value) for name in seen)
    assert_finished(run(settings), finished)


@pytest.fixture(scope="module")
def stopped(picture_folder, tiny_pipeline_dir, tmp_path_factory) -> Path:
    """A run that was stopped at step 2, with data and model of its own beside it."""
    root = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        at_history(patch)
        with pytest.raises(TrainingError):
            run(with_its_own(shutil.copytree(picture_folder, root / "data"), tiny_pipeline_dir, root))
    shutil.copytree(tiny_pipeline_dir, root / "pipeline")
    return root


def with_its_own(data: Path, model: Path, root: Path) -> dict[str, Any]:
    return {**SMALL, "data": str(data), "model": str(model), "out": str(root / "run")}


@pytest.fixture
def begun(stopped, tmp_path) -> dict[str, Any]:
    """Settings of a copy of it."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return with_its_own(tmp_path / "data", tmp_path / "pipeline", tmp_path)


def test_resuming_with_another_configuration_says_what_differs(begun, tmp_path):
    def refused(message: str, **values: Any) -> None:
        with pytest.raises(InputError, match=message):
            run(begun, **values)

    refused(r"other settings \(rank 2 -> 4\); choose another --out", rank=4)
    refused("learning_rate 0.01 -> 0.02, method 'lora' -> 'dora'", method="dora", learning_rate=0.02)
    with pytest.raises(InputError, match=r"rank 2 -> 4"):
        plan(begun, rank=4)
    data, model = Path(begun["data"]), Path(begun["model"])
    Image.new("RGB", (32, 32)).save(data / "red_bar.png")
    refused("samples '.*' -> '")
    shutil.copy(data / "red_bar.png", tmp_path / "kept.png")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    refused("model '.*' -> '")


def test_a_run_may_move_and_be_watched_otherwise(begun, finished, tmp_path):
    """What does not change the result may differ: where data lie, how often it is saved."""
    moved = Path(begun["data"]).rename(tmp_path / "moved")
    assert_finished(run(begun, data=str(moved), checkpoint_every=1, keep=1, log_every=3, workers=1), finished)


def test_a_checkpoint_that_is_damaged_is_named(begun, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-00000002" / "optimizer.safetensors").write_bytes(b"?")
    with pytest.raises(TrainingError, match=r"step-00000002 is damaged.*Remove .*checkpoints"):
        run(begun)
