from __future__ import annotations

import pytest
import torch

from sd_ext.lora import Adapter, Lora, ModuleName, read_lora, save_lora

from .test_startup import SLOW, modules_after

ONE = ModuleName("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")


@pytest.fixture
def file(tmp_path):
    """A LoRA for the tiny pipeline of conftest, rank 4, alpha 2."""
    draw = torch.Generator().manual_seed(0)
    tensors = {"down": torch.randn(4, 32, generator=draw), "up": torch.randn(32, 4, generator=draw)}
    path = tmp_path / "a.safetensors"
    save_lora(Lora({ONE: Adapter("lora", tensors, 2.0)}, {"ss_seed": "7"}), path, "diffusers")
    return path


def test_there_and_back(run, file):
    assert run("convert", "lora", file, "k.safetensors").out == "k.safetensors\n"
    assert run("convert", "lora", "k.safetensors", "d.safetensors", "--to", "diffusers").code == 0
    one, other = read_lora(file), read_lora("d.safetensors")
    assert torch.equal(one.delta(ONE), other.delta(ONE))
    assert other.metadata["ss_seed"] == "7"


def test_nothing_is_overwritten_unless_asked(run, file):
    before = file.read_bytes()
    refused = run("convert", "lora", file, file)
    assert (refused.code, file.read_bytes()) == (2, before)
    assert "--overwrite" in refused.err
    assert run("convert", "lora", file, file, "--overwrite").code == 0


def test_merge_resize_and_what_they_say(run, file):
    merged = run("convert", "merge", f"{file}:0.75", f"{file}:-0.5", file, "--out", "m.safetensors", "--base", "sd15")
    assert (merged.code, merged.out) == (0, "m.safetensors\n")
    torch.testing.assert_close(read_lora("m.safetensors").delta(ONE), 1.25 * read_lora(file).delta(ONE))
    resized = run("convert", "resize", "m.safetensors", "--rank", 2, "--out", "r.safetensors", "--dtype", "float16")
    assert "Relative error of a module: at most 0." in resized.err
    assert read_lora("r.safetensors").adapters[ONE].rank == 2


def test_into_a_model_and_out_again(run, file, tiny_pipeline_dir, tmp_path):
    made = run("convert", "merge", f"{file}:2", "--into", tiny_pipeline_dir, "--out", "merged")
    assert (made.code, made.out) == (0, "merged\n")
    found = run("convert", "extract", tiny_pipeline_dir, "merged", "--energy", 1, "--out", "e.safetensors")
    assert found.code == 0
    lora = read_lora("e.safetensors")
    assert list(lora.adapters) == [ONE]
    torch.testing.assert_close(lora.delta(ONE), 2 * read_lora(file).delta(ONE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lora", "missing.safetensors", "k.safetensors"], "no such LoRA: missing.safetensors"),
        (["lora", "a.safetensors", "k.ckpt"], ".safetensors only"),
        (["merge", "a.safetensors:1e9", "--out", "k.safetensors"], "choose -100 to 100"),
        (["merge", "a.safetensors", "--out", "k.safetensors", "--rank", "0"], "--rank 0 cannot work"),
        (["merge", "a.safetensors", "--out", "k", "--into", "a", "--rank", "2"], "do not go with it"),
        (["merge", "a.safetensors", "--out", "k", "--into", "missing"], "no such model folder"),
        (["extract", ".", ".", "--out", "k.safetensors"], "--rank N, or --energy SHARE"),
        (["extract", ".", "missing", "--out", "k.safetensors", "--rank", "2"], "no such model folder"),
        (["extract", ".", ".", "--out", "k.safetensors", "--rank", "2"], "no safetensors weights"),
        (["resize", "a.safetensors", "--out", "k.safetensors", "--energy", "2"], "--energy 2 cannot work"),
    ],
)
def test_what_cannot_work_is_one_sentence(run, file, arguments, complaint):
    refused = run("convert", *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n") == 1
    assert complaint in refused.err


@pytest.mark.parametrize("arguments", [["convert", "--help"], ["convert", "lora", "missing", "k.safetensors"]])
def test_help_and_mistakes_are_quick(arguments):
    assert not modules_after(f"import sd_ext.cli; sd_ext.cli.main({arguments})") & SLOW
