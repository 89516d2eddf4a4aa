from __future__ import annotations

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_ext.lora import Adapter, Lora, ModuleName, save_lora

ONE = ModuleName("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")


def test_how_a_picture_was_made(run, tiny_pipeline_dir):
    path = run("generate", "red apple", "--model", tiny_pipeline_dir, "--steps", 2).paths[0]
    shown = run("info", path)
    assert shown.code == 0
    facts = dict(line.split(maxsplit=1) for line in shown.out.splitlines()[:-2])
    assert facts["prompt"] == "red apple"
    assert facts["model"] == str(tiny_pipeline_dir)
    assert (facts["steps"], facts["seed"], facts["size"], facts["dtype"]) == ("2", "0", "64x64", "float32")
    assert facts["software"].startswith("sd_ext ")


def test_pictures_that_do_not_say(run, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "mute.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, message in [
        ("mute.png", "does not say how it was made"),
        ("text.png", "cannot be read as a picture"),
        ("none.png", "no such picture"),
        (".", "cannot be read as a picture"),
    ]:
        refused = run("info", name)
        assert (refused.code, refused.out) == (2, "")
        assert message in refused.err
        assert refused.err.count("\n") == 1


def test_what_a_lora_is_and_its_title(run, tmp_path):
    tensors = {"down": torch.randn(4, 320), "up": torch.randn(320, 4)}
    path = tmp_path / "a.safetensors"
    save_lora(Lora({ONE: Adapter("lora", tensors, 2.0)}, {"modelspec.title": "Old"}, "sd15"), path, "kohya")
    before = load_file(path)
    shown = run("info", path, "--edit", "title=New = better", "tags=cat,\x1b[31mred", "--edit", "trigger=ohwx")
    assert (shown.code, shown.err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in shown.out.splitlines() if not line.startswith("tensors'"))
    assert facts["what"] == "a LoRA file: 1 modules of lora"
    assert (facts["title"], facts["trigger"], facts["ranks"], facts["alphas"]) == ("New = better", "ohwx", "4", "2")
    assert facts["tags"] == r"\x1b[31mred (1), cat (1)"
    assert facts["A1111"] == facts["ComfyUI"] == facts["Diffusers"] == "yes"
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(path).items())
    assert run("info", path).out == shown.out
    content = path.read_bytes()
    for wrong, message in (
        (["--edit", "title"], "write NAME=TEXT"),
        (["--edit", "titel=x"], "did you mean 'title'"),
        (["title=x"], "only with --edit"),
    ):
        refused = run("info", path, *wrong)
        assert (refused.code, refused.err.count("\n"), refused.out) == (2, 1, "")
        assert message in refused.err
    assert path.read_bytes() == content


def test_loras_for_other_models_and_pictures(run, tmp_path):
    flux = {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{end}.weight": torch.ones(4, 4) for end in ("down", "up")}
    save_file(flux, tmp_path / "flux.safetensors", {"modelspec.title": "F"})
    shown = run("info", "flux.safetensors")
    assert shown.code == 0
    assert "title" in shown.out
    assert "not read" in shown.out
    (tmp_path / "page.safetensors").write_bytes(b"<html>")
    refused = run("info", "page.safetensors")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "is an HTML page" in refused.err
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "only what .safetensors files say" in run("info", "a.png", "--edit", "title=x").err
