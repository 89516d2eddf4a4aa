"""What saves memory or time changes nothing else: checkpointing, compilation, low precision of the frozen base."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from accelerate import Accelerator

from sd_ext.errors import InputError
from sd_ext.lora import apply_lora, read_lora
from sd_ext.seams.accelerate import inner_optimizer
from sd_ext.training.data.order import StepOrder

from ..lora_cases import a_task, assert_same, outputs, pipeline

has_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def gradients(tmp_path, base, data, **settings):
    """(task, gradients of everything trained, at adapters that are not zero)."""
    task = a_task(tmp_path, base, data, cache_dir=str(tmp_path / "cache"), **settings)
    task.begin(Accelerator(cpu=True))
    for n, (name, p) in enumerate(task.model.named_parameters()):
        if "lora_B" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n))
    task.model.train()
    (each,) = StepOrder(task.sizes, 2, 2, 0).passes(0)
    task.model(*task.batch(each, task.read(each), torch.device("cpu")))["loss"].backward()
    return task, {name: p.grad for name, p in task.model.named_parameters() if p.requires_grad}


def test_checkpointing_all_or_some_blocks_gives_the_same_gradients(tmp_path, bases, picture_folder):
    words = {"text_encoder": True, "tokens": ("<w>",), "prefix": "<w>"}
    plain, expected = gradients(tmp_path, bases["sd15"], picture_folder, **words)
    for blocks in ((), ("up_blocks.1", "mid_block")):
        task, got = gradients(
            tmp_path, bases["sd15"], picture_folder, **words, gradient_checkpointing=True, checkpoint_blocks=blocks
        )
        on = {name for name, m in task.unet.named_modules() if getattr(m, "gradient_checkpointing", False)}
        able = {name for name, m in task.unet.named_modules() if hasattr(m, "gradient_checkpointing")}
        assert on == ({name for name in able if name.startswith(blocks)} if blocks else able)
        assert task.towers.encoders["text_encoder"].is_gradient_checkpointing
        assert got.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], atol=1e-7, rtol=1e-5)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in plain.unet.modules())


def test_every_trained_parameter_has_a_gradient_in_sdxl(tmp_path, bases, picture_folder):
    words = {"text_encoder": True, "tokens": ("<w>",), "prefix": "<w>", "gradient_checkpointing": True}
    _, got = gradients(tmp_path, bases["sdxl"], picture_folder, **words)
    without = {name for name, grad in got.items() if grad is None or not grad.any()}
    # The first encoder's last layer, as its last hidden state but one is read.
    assert all("towers.encoders.text_encoder.encoder.layers.1." in name.replace("text_model.", "") for name in without)


def test_blocks_that_are_not_there_are_named(tmp_path, bases, picture_folder):
    with pytest.raises(InputError, match=r"mid_blok is no block of the U-Net; it has .*mid_block"):
        gradients(
            tmp_path, bases["sd15"], picture_folder,
            gradient_checkpointing=True, checkpoint_blocks=("up_blocks", "mid_blok"),
        )  # fmt: skip


def test_adapters_and_optimizer_are_float32_over_a_base_in_bfloat16(lora_run):
    trained = lora_run("sd15", mixed_precision="bf16", text_encoder=True, ema=0.5)
    kinds = {p.requires_grad: p.dtype for p in trained.task.model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    moments = [value for state in inner_optimizer(trained.run.optimizer).state.values() for value in state.values()]
    assert {value.dtype for value in moments} == {torch.float32}
    assert {value.dtype for value in trained.run.ema.average.values()} == {torch.float32}
    lora = read_lora(trained.diffusers)
    average = trained.run.ema.average
    for module, adapter in lora.adapters.items():
        name = str(module) if module.part == "unet" else f"towers.encoders.{module}"
        assert torch.equal(adapter.up, average[f"{name}.lora_B.default.weight"])
        assert adapter.up.any() or module.part != "unet" or "mid_block" in module.path


def test_small_steps_are_not_lost_in_low_precision(lora_run):
    """A thousandth of a weight's size is below bfloat16's resolution of 1/256."""
    short, long = (
        lora_run("sd15", mixed_precision="bf16", steps=n, learning_rate=1e-5, lr_schedule="constant") for n in (1, 3)
    )
    for (name, a), b in zip(short.task.model.named_parameters(), long.task.model.parameters(), strict=True):
        if "lora_A" in name and "mid_block" not in name:
            assert not torch.equal(a, b)


@has_torchao
@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_a_base_in_eight_bits(lora_run, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = lora_run("sd15", base_precision="int8", method=method)
    linear = trained.task.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q").get_base_layer()
    assert "Int8" in type(linear.weight).__name__ or "int8" in str(linear.weight).lower()
    assert {p.dtype for p in trained.task.model.parameters() if p.requires_grad} == {torch.float32}
    learnt = trained.make()["unet"]
    trained.task.unet.disable_adapters()
    rounded = trained.make()["unet"]
    trained.task.unet.enable_adapters()
    pipe = pipeline(trained.base)
    before = outputs(pipe)["unet"]
    with apply_lora(pipe, read_lora(trained.kohya)):
        change = outputs(pipe)["unet"] - before
    # On the whole base the adapters do what they did on the rounded one.
    assert (change - (learnt - rounded)).norm() < 0.1 * change.norm()
    assert change.abs().mean() > 2e-4


@pytest.mark.slow
def test_compiled_blocks_train_to_the_same(lora_run):
    assert_same(lora_run("sd15", compile=True).made, lora_run("sd15").made)
