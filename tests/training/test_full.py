"""Full fine-tuning: weights in bfloat16, steps in the backward pass, text encoders, one file, the plan."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from sd_ext.errors import InputError
from sd_ext.models import find_model
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.full_plan import plan_full
from sd_ext.training.train_text_to_image import run

from .conftest import forget_accelerate_state, write_pictures

GIVEN = {
    "device": "cpu", "tracker": "none", "resolution": (64,), "batch_size": 2, "steps": 4, "validate_every": 0,
    "warmup": 0, "checkpoint_every": 2, "learning_rate": 1e-4, "text_dropout": 0.1, "ema": 0.0, "log_every": 1,
}  # fmt: skip
LOW = {"weights": "bf16", "mixed_precision": "bf16"}
FUSED = {"fused_backward": True, "clip": 0.0}


def trained(base: Any, folder: Path, data: Path, **settings: Any) -> Path:
    forget_accelerate_state()
    given = {**GIVEN, "model": str(base), "data": str(data), "out": str(folder), **settings}
    try:
        return run(TextToImageConfig.of(**given))
    finally:
        forget_accelerate_state()


def unet(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("full") / "data", 64)


def test_steps_in_the_backward_pass_change_nothing_and_a_run_resumes_to_the_bit(bases, data, tmp_path):
    """Weights in bfloat16, Kahan's rest in the checkpoints."""
    given = {**LOW, "rounding": "kahan", "clip": 0.0}
    fused = {**given, **FUSED}
    one = trained(bases["sd15"], tmp_path / "one", data, **given)
    other = trained(bases["sd15"], tmp_path / "other", data, **fused)
    assert all(torch.equal(weight, unet(other)[name]) for name, weight in unet(one).items())
    assert {weight.dtype for weight in unet(one).values()} == {torch.bfloat16}
    before = load_file(bases["sd15"] / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(weight, before[name].bfloat16()) for name, weight in unet(one).items())
    shutil.rmtree(tmp_path / "other" / "model")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "step-00000004")
    again = trained(bases["sd15"], tmp_path / "other", data, **fused)
    assert all(torch.equal(weight, unet(again)[name]) for name, weight in unet(one).items())


@pytest.mark.slow
def test_stochastic_rounding_resumes_to_the_bit(bases, data, tmp_path):
    one = trained(bases["sdxl"], tmp_path / "one", data, **LOW)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "model")
    shutil.rmtree(tmp_path / "other" / "checkpoints" / "step-00000004")
    again = trained(bases["sdxl"], tmp_path / "other", data, **LOW)
    assert all(torch.equal(weight, unet(again)[name]) for name, weight in unet(one).items())


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_text_encoders_are_trained_and_saved(shape, bases, data, tmp_path):
    folder = trained(bases[shape], tmp_path / "run", data, train_text=True, validate_every=4, preview_steps=2)
    parts = ["text_encoder", *(["text_encoder_2"] if shape == "sdxl" else [])]
    for part in parts:
        before, after = (load_file(at / part / "model.safetensors") for at in (bases[shape], folder))
        known = {name.removeprefix("text_model."): weight for name, weight in before.items()}
        moved = [n for n, w in after.items() if not torch.equal(w, known.get(n.removeprefix("text_model."), w))]
        assert len(moved) > len(after) // 3
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert pipe("red circle", num_inference_steps=1, output_type="latent", height=64, width=64).images.isfinite().all()


@pytest.mark.slow
def test_a_base_in_one_file_is_trained_into_one_file(tiny_file, data, tmp_path):
    folder = trained(tiny_file("sd15"), tmp_path / "run", data, save_as="file", steps=2)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    made = find_model(str(folder / "model.safetensors"))
    made.check()
    before, after = (dict(find_model(str(path)).load("unet").named_parameters())
                     for path in (tiny_file("sd15"), folder / "model.safetensors"))  # fmt: skip
    assert before.keys() == after.keys()
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items())


def plan(base: Path, data: Path, **settings: Any) -> dict[str, str]:
    given = TextToImageConfig.of(**{**GIVEN, "model": str(base), "data": str(data), **settings})
    return dict(line.split(maxsplit=1) for line in plan_full(given))


@pytest.mark.slow
def test_the_plan_says_what_a_run_needs(bases, data):
    full, low = plan(bases["sd15"], data), plan(bases["sd15"], data, **LOW, **FUSED)
    count = sum(w.numel() for w in load_file(bases["sd15"] / "unet" / "diffusion_pytorch_model.safetensors").values())
    assert full["trained"].startswith(f"{count:,} parameters (U-Net, fp32)")
    assert "checkpoints of" in full["disk"]
    assert "TFLOP a step" in full["work"]
    assert low["memory"] != full["memory"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": "bf16"}, "mixed_precision = bf16"), ({"fused_backward": True}, "clip = 0"),
        ({**FUSED, "accumulation": 2}, "accumulation = 1"), ({**LOW, "optimizer": "prodigy"}, "prodigy may look at"),
        ({"rounding": "kahan"}, "weights in bf16"), ({**FUSED, "mixed_precision": "fp16"}, "fp16 scales"),
        ({"train_text": True, "clip_skip": 2}, "clip_skip"), ({"text_rate": 1e-5}, "without train_text"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(settings, said):
    with pytest.raises(InputError, match=said):
        TextToImageConfig.of(**settings)


def test_one_file_is_refused_before_training_where_it_has_no_place_for_the_model(bases, data, tmp_path):
    with pytest.raises(InputError):
        trained("embedded", tmp_path / "run", data, save_as="file")
