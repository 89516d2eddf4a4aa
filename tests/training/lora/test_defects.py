"""Defects of other trainers (their issues are named), each with the tests that show it does not happen here."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from sd_ext.training.lora.adapters import TEXT_TARGETS
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import train_once
from sd_ext.training.lora.task import LoraTask
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run.fit import start
from sd_ext.training.run.memory import peak_bytes

TESTS = Path(__file__).resolve().parents[2]

# What happens elsewhere: the files and tests that show otherwise.
DEFECTS = {
    # Diffusers' example scripts for Stable Diffusion and SDXL.
    "gradient clipping never acts": ["training/run/test_loop.py::test_clipping_acts_at_every_step"],
    "bf16 trains a bf16 LoRA with bf16 moments": [
        "training/lora/test_defects.py::test_under_bf16_what_is_trained_is_in_float32"
    ],
    "publishing without a validation prompt crashes (diffusers #4092)": ["hub/test_stage.py::test_the_least_there_is"],
    "optimizer state is uploaded (diffusers #8225)": ["hub/test_stage.py::test_exactly_what_is_to_be_published"],
    "no adapter metadata: alpha / rank is lost": [
        "lora/formats/test_files.py::test_alpha_over_rank_outlives_diffusers_format",
        "lora/formats/test_parity.py::test_the_header_says_what_peft_needs_and_kohyas_has_none_of_it",
    ],
    "kohya files with alpha = rank": ["lora/formats/test_files.py::test_alpha_is_written_as_it_is_and_not_as_the_rank"],
    "U-Net keys half converted": [
        "lora/formats/test_names.py::test_every_module_of_the_full_models_survives_both_formats"
    ],
    "DoRA misnamed for kohya, or dropped": [
        "lora/formats/test_parity.py::test_dora_through_diffusers_files",
        "lora/formats/test_parity.py::test_deviation_diffusers_drops_dora_of_kohya_files",
    ],
    "text-encoder keys without text_model": [
        "lora/formats/test_names.py::test_kohyas_names_are_those_made_from_the_models_side",
        "training/lora/test_output.py::test_diffusers_loads_kohyas_file",
    ],
    "minority alphas become the majority's": [
        "lora/formats/test_parity.py::test_deviation_diffusers_gives_minority_alphas_of_kohya_files_the_majoritys"
    ],
    "text encoders without out_proj lose q, k, v": [
        "lora/formats/test_parity.py::test_deviation_diffusers_cannot_read_text_encoders_without_out_proj_from_kohya_files",
        "training/lora/test_defects.py::test_text_encoders_have_adapters_in_out_proj",
    ],
    "min-SNR of epsilon for v-prediction": [
        "training/objective/test_weights.py::test_formulas_as_published",
        "training/objective/test_weights.py::test_the_weighted_error_does_not_depend_on_the_prediction_type",
    ],
    "epsilon with zero-terminal SNR is NaN": [
        "training/objective/test_target.py::test_eps_is_refused_where_nothing_is_left_of_the_picture"
    ],
    "a resume skips nothing": [
        "training/data/test_order.py::test_any_step_can_be_asked_for_first",
        "training/lora/test_lora_resume.py::test_killed_while_it_writes",
    ],
    "a resume replays the first epoch's order (accelerate #2016, #2823, #3996, #4195)": [
        "training/run/test_resume.py::test_epochs_differ_and_are_the_same_after_a_resume"
    ],
    # What users complain of.
    "LoRA unusable in ComfyUI and A1111 (diffusers #10860, #6399, ComfyUI #2689)": [
        "training/lora/test_output.py::test_a_reader_written_from_kohyas_format_finds_the_same",
        "lora/formats/test_names.py::test_names_written_down_from_files_of_kohyas_trainer",
    ],
    "half-written checkpoints (SimpleTuner #2613, diffusion-pipe #159)": [
        "training/run/test_checkpoint.py::test_there_is_always_a_whole_checkpoint",
        "training/lora/test_lora_resume.py::test_killed_at_random",
    ],
    "old checkpoints go before the new one is there": [
        "training/run/test_checkpoint.py::test_there_is_always_a_whole_checkpoint",
        "training/lora/test_errors.py::test_a_full_disk_leaves_the_last_checkpoint_whole",
    ],
    "stale caches (kohya_ss #1629, sd-scripts #931, #2362)": [
        "training/encoding/test_encoded.py::test_what_has_changed_and_nothing_else_is_encoded_anew"
    ],
    "one frozen sample of each latent (sd-scripts #1709)": [
        "training/encoding/test_encoded.py::test_every_step_draws_a_fresh_sample_of_the_posterior"
    ],
    "SDXL's autoencoder in fp16 is NaN (diffusers #4820, #7310)": [
        "training/encoding/test_encoded.py::test_the_autoencoder_computes_in_float32"
    ],
    "validation runs out of memory (diffusers #4368, #4736)": [
        "training/lora/test_defects.py::test_looking_at_a_run_takes_no_more_memory_than_training"
    ],
    "learning rate against number of processes (diffusers #3954, #6137, #8312)": [
        "training/lora/test_lora_processes.py::test_two_processes_are_one",
        "training/optimizer/test_schedules.py::test_exact_at_the_ends",
    ],
    "gradient accumulation of uneven batches (diffusers #10553)": [
        "training/run/test_loop.py::test_the_gradient_is_that_of_the_mean_over_the_step_however_it_is_cut"
    ],
    "no buckets (diffusers #7908)": ["training/data/test_buckets.py::test_every_picture_fits_its_buckets"],
    "broken images kill the run": ["training/lora/test_errors.py::test_what_is_left_out_is_named"],
    "underflow in fp16 files (sd-scripts #93)": [
        "lora/formats/test_files.py::test_underflow_is_reported_and_refused_where_it_would_undo_a_module"
    ],
    "text encoder silently untrained (sd-scripts #890, #855)": [
        "training/lora/test_output.py::test_training_changes_all_that_is_trained",
        "training/lora/test_methods.py::test_text_encoders_change_both_of_sdxl_and_their_bases_do_not",
    ],
}


def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_its_test(defect):
    for place in DEFECTS[defect]:
        file, _, name = place.partition("::")
        assert name in names_in(TESTS / file), place


@pytest.fixture
def settings(two_sizes_folder, tiny_pipeline_dir, tmp_path) -> dict[str, Any]:
    return {
        "device": "cpu", "tracker": "none", "data": str(two_sizes_folder), "model": str(tiny_pipeline_dir), "rank": 2,
        "resolution": (32,), "bucket_step": 8, "batch_size": 4, "steps": 2, "out": str(tmp_path / "run"),
        "validation_split": "held_out", "preview_steps": 2,
    }  # fmt: skip


def begun(settings: dict[str, Any], **values: Any) -> LoraTask:
    config = LoraConfig.of(**{**settings, **values})
    task = LoraTask(config, find_trainable(config.base.model))
    task.begin(Accelerator(cpu=True, mixed_precision=config.machine.mixed_precision))
    return task


def test_under_bf16_what_is_trained_is_in_float32(settings):
    """The adapters, their gradients, both of Adam's moments, and the average; the base is in bf16."""
    values = {"mixed_precision": "bf16", "text_encoder": True, "tokens": ("<toy>",), "prefix": "<toy>", "ema": 0.9}
    task = begun(settings, **values)
    run = start(task, task.config, task.accelerator)
    train_once(task.workload, task.loss, "cpu")
    trained = [p for p in task.model.parameters() if p.requires_grad]
    assert {p.dtype for p in task.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert len(trained) > 20
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}
    run.optimizer.step()
    states = [run.optimizer.state[p] for p in trained if p in run.optimizer.state]
    assert len(states) > 20
    assert {state[moment].dtype for state in states for moment in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert run.ema is not None
    assert {average.dtype for average in run.ema.average.values()} == {torch.float32}


def test_text_encoders_have_adapters_in_out_proj(settings):
    assert "out_proj" in TEXT_TARGETS
    task = begun(settings, text_encoder=True)
    trained = [name for name, p in task.model.named_parameters() if p.requires_grad and name.startswith("towers.")]
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert names == set(TEXT_TARGETS)


def test_looking_at_a_run_takes_no_more_memory_than_training(settings):
    """Held-out pictures are measured and previews drawn one after the other, however many there are."""
    prompts = tuple(f"red {shape}" for shape in ("bar", "circle", "square", "ball", "dot", "ring"))
    one, many = (begun({**settings, "out": settings["out"] + str(n)}, prompts=prompts[:n]) for n in (1, 6))
    step = peak_bytes([one.model], lambda: train_once(one.workload, one.loss, "cpu"))

    @torch.no_grad()
    def looking(task: LoraTask, call: str) -> int:
        task.model.eval()
        task.encoded.vae()
        return peak_bytes([task.model, task.encoded.vae()], getattr(task, call))

    assert looking(one, "validate") < step
    pictures = 6 * 32 * 32 * 3 * 4
    assert looking(many, "preview") < looking(one, "preview") + pictures
