"""The plan says what the run will do, loads nothing for it, and its memory is what a step takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from sd_ext.models import Folder
from sd_ext.training.lora import estimate as estimates
from sd_ext.training.lora.adapters import trained_parameters
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import at_most, check_fits, estimate, train_once
from sd_ext.training.lora.plan import plan_lora, steps
from sd_ext.training.lora.task import LoraTask
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run import memory
from sd_ext.training.run.memory import peak_bytes
from sd_ext.training.settings.command import parse

CPU = torch.device("cpu")


@pytest.fixture
def settings(two_sizes_folder, tiny_pipeline_dir, tmp_path) -> dict[str, Any]:
    return {
        "device": "cpu", "tracker": "none", "data": str(two_sizes_folder), "model": str(tiny_pipeline_dir), "rank": 2,
        "resolution": (32,), "bucket_step": 8, "batch_size": 2, "steps": 6, "out": str(tmp_path / "run"),
        "prompts": ("red bar",), "preview_steps": 1,
    }  # fmt: skip


def make_task(settings: dict[str, Any], **values: Any) -> LoraTask:
    config = LoraConfig.of(**{**settings, **values})
    return LoraTask(config, find_trainable(config.base.model))


def real_step(task: LoraTask) -> tuple[torch.nn.Module, Callable[[], None]]:
    """The model of the run, and a step of its largest batch."""
    task.begin(Accelerator(cpu=True))
    task.model.train()
    return task.model, lambda: train_once(task.workload, task.loss, "cpu")


def test_a_plan_says_all_loads_nothing_and_writes_nothing(settings, monkeypatch, tmp_path):
    values = {"text_encoder": True, "tokens": ("<toy>",), "prefix": "<toy>", "validation_split": "held_out"}
    model, _ = real_step(make_task(settings, **values, cache_dir=str(tmp_path / "cache")))
    real = Folder.load

    def load(self: Folder, part: str, *rest: Any) -> Any:
        assert part.startswith("tokenizer"), f"{part} was loaded"
        return real(self, part, *rest)

    monkeypatch.setattr(Folder, "load", load)
    settings["out"] = str(tmp_path / "planned")
    told = {line[:15].strip(): line[16:] for line in plan_lora(LoraConfig.of(**settings, **values))}
    assert told["pictures"] == "11, 11 samples an epoch, none left out"
    assert told["buckets"] == "32x32: 6, 40x24: 5"
    assert told["held out"] == "1 pictures"
    assert told["captions"] == "11 texts"
    assert told["steps"] == "6 of 2 samples, 6 an epoch: 1.0 epochs, a checkpoint every 500"
    assert told["optimizer"].startswith("adamw, learning rate 0.0001, ")
    assert told["trained"] == f"{trained_parameters(model):,} parameters (lora, rank 2)"
    assert "free on cpu" in told["memory"]
    assert not (tmp_path / "planned").exists()


def test_steps_of_epochs_and_processes(settings):
    """Groups of four of one size, and one of what is left: three steps an epoch, for one process or two."""
    task = make_task(settings, epochs=5, accumulation=2)
    assert task.config.loop.steps == 15
    assert steps(task, 1) == "15 of 4 samples, 3 an epoch: 5.0 epochs, a checkpoint every 500"
    task = make_task(settings, steps=15)
    assert steps(task, 2) == steps(make_task(settings, steps=15, accumulation=2), 1)


WORDS = {"text_encoder": True, "tokens": ("<toy>",), "token_vectors": 2, "prefix": "<toy>", "dropout": 0.1}
KINDS = {
    "lora": ("sd", {}),
    "dora, words": ("sd", {"method": "dora", "targets": ("attention", "resnet"), **WORDS}),
    "loha, huber": ("sd", {"method": "loha", "loss": "huber", "batch_size": 4, "cache": False}),
    "lokr, bf16": ("sd", {"method": "lokr", "targets": ("all",), "mixed_precision": "bf16"}),
    "pissa, checkpointing": ("sd", {"init": "pissa", "gradient_checkpointing": True, "text_encoder": True}),
    "sdxl, checkpointing": ("sdxl", {"gradient_checkpointing": True, "text_encoder": True}),
}


ALWAYS = ("lora",)  # the others take seconds each


@pytest.mark.parametrize(
    ("family", "kind"),
    [pytest.param(*case, marks=() if name in ALWAYS else pytest.mark.slow) for name, case in KINDS.items()],
    ids=KINDS,
)
def test_the_estimate_is_what_a_step_takes(settings, tiny_sdxl_dir, family, kind):
    """To the byte, what the operations of a real step hold at once; and the numbers that are trained."""
    if family == "sdxl":
        settings["model"] = str(tiny_sdxl_dir)
    task = make_task(settings, **kind)
    found, bound = estimate(task.workload, CPU), at_most(task.workload)
    model, step = real_step(task)
    assert found.trained == trained_parameters(model)
    assert found.activations == peak_bytes([model], step)
    vae = 0 if task.config.cache.cache else sum(p.nbytes for p in task.encoded.vae().parameters())
    assert found.weights == sum(p.nbytes for p in model.parameters()) + vae
    assert bound >= found.total


@pytest.mark.slow
def test_the_estimate_for_int8(settings):
    pytest.importorskip("torchao")
    full, int8 = (estimate(make_task(settings, base_precision=p).workload, CPU) for p in ("fp32", "int8"))
    assert int8.weights < full.weights
    assert int8.trained == full.trained


@pytest.mark.slow
def test_what_costs_and_what_saves_memory(settings):
    def taken(**values: Any) -> estimates.Estimate:
        return estimate(make_task(settings, **{"batch_size": 1, **values}).workload, CPU)

    one, three = taken(), taken(batch_size=3)
    assert three.activations == pytest.approx(3 * one.activations, rel=0.1)
    assert three.weights == one.weights
    assert taken(batch_size=3, gradient_checkpointing=True).activations < 0.7 * three.activations
    assert taken(resolution=(64,), upscale=True).activations > 3 * one.activations
    assert taken(mixed_precision="bf16").weights < 0.6 * one.weights
    averaged = taken(ema=0.9, validate_every=0)
    assert (averaged.training, averaged.drawing) == (one.training + 4 * one.trained, 0)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_allocator_agrees(settings, checkpointing):
    """An independent measure: what PyTorch's allocator gave out at most, temporaries within operations among it."""
    task = make_task(settings, batch_size=4, gradient_checkpointing=checkpointing)
    found = estimate(task.workload, CPU).activations
    model, step = real_step(task)
    step()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events: Any = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert found == pytest.approx(peak, rel=0.15)


def test_a_run_that_clearly_fits_is_not_estimated(settings, monkeypatch):
    task = make_task(settings)
    monkeypatch.setattr(estimates, "estimate", lambda *_: pytest.fail("no need"))
    check_fits(task.workload, CPU)


def test_what_a_container_leaves(tmp_path):
    assert memory.container_memory(tmp_path) is None
    (tmp_path / "memory.current").write_text("300\n")
    for limit, free in (("max\n", None), ("1000\n", 700)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory.container_memory(tmp_path) == free


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "system_memory", lambda: 12)
    monkeypatch.setattr(memory, "container_memory", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.free_memory(CPU) == 4


# Models of full size, of which there are only the settings.

VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "layers_per_block": 2,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
DOWN, UP, CROSS_DOWN, CROSS_UP = "DownBlock2D", "UpBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD21 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {"down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN], "up_block_types": [CROSS_UP, CROSS_UP, UP],
        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10], "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20], "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}  # fmt: skip
UNETS = {"sd15": {"cross_attention_dim": 768, "attention_head_dim": 8}, "sd21": SD21, "sdxl": SDXL}
WIDTHS = {"sd15": 768, "sd21": 1024, "sdxl": 768}


def full_size(shape: str, folder: Path) -> Folder:
    parts: dict[str, dict[str, Any]] = {
        "unet": UNETS[shape], "vae": VAE, "text_encoder": {"hidden_size": WIDTHS[shape], "max_position_embeddings": 77},
        "scheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        **({"text_encoder_2": {"hidden_size": 1280, "projection_dim": 1280}} if shape == "sdxl" else {}),
    }  # fmt: skip
    for part, config in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "scheduler" / "config.json").rename(folder / "scheduler" / "scheduler_config.json")
    return Folder(folder, shape, parts={part: folder / part for part in parts})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "parameters", "trained", "card"),
    [
        ("sd15", 859_520_964, 3_188_736, 8),
        ("sd21", 865_910_724, 3_319_808, 12),
        ("sdxl", 2_567_463_684, 23_224_320, 16),
    ],
)
def test_presets_fit_the_cards_they_name(picture_folder, tmp_path, shape, parameters, trained, card):
    """In GB, with room for CUDA and the libraries; the sizes of the models and of a rank-16 LoRA are as published.

    The published: 0.86 and 2.57 thousand million weights (Podell et al. 2023, table 1), 3.2 and 23 million trained.
    """
    arguments = [shape, "--data", str(picture_folder), "--out", str(tmp_path / "run"), "--upscale", "--buckets=no"]
    task = LoraTask(parse(LoraConfig, arguments, "")[0], full_size(shape, tmp_path / "model"))
    found = estimate(task.workload, CPU)
    assert found.trained == trained
    assert found.weights == 2 * parameters + 4 * trained  # frozen in 16 bits, trained in 32
    assert found.total + 1.5e9 < card * 1e9
    lines = (Path(estimates.__file__).parents[1] / "recipes" / f"lora_{shape}.toml").read_text().splitlines()
    assert f"on a GPU of {card} GB" in lines[0]
