"""DoRA for ComfyUI: what it makes of DoRA, restated, and that the plain version is what was trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sd_ext.errors import InputError
from sd_ext.lora import Adapter, Lora, ModuleName, apply_lora, read_lora, save_lora
from sd_ext.lora.plain import has_dora, told, without_dora
from sd_ext.lora.weights import ModelWeights

from . import models


def paper(weight: np.ndarray, delta: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """m (W + delta) / ||W + delta||, the norm of each output's row."""
    moved = weight + delta
    return magnitudes * moved / np.linalg.norm(moved, axis=1, keepdims=True)


def comfyui(weight: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """What ComfyUI adds a file's module to: alpha / rank * up @ down, and with dora_scale over the norm of W alone."""
    up, down = tensors["lora_up.weight"], tensors["lora_down.weight"]
    moved = weight + tensors["alpha"] / len(down) * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    if "dora_scale" in tensors:
        moved *= tensors["dora_scale"].reshape(-1, 1) / np.linalg.norm(weight, axis=1, keepdims=True)
    return moved


@pytest.fixture(scope="module")
def dora():
    """Large matrices, so that four times the rank is not all of them; strong enough to see what ComfyUI does."""
    draw = torch.Generator().manual_seed(0)
    unet = models.tiny_unet("sd15")
    base = ModelWeights({"unet": unet})
    adapters = {}
    for module, shape in base.shapes().items():
        if len(shape) in (2, 4) and (".attentions." in module.path or module.path.endswith("conv1")):
            weight = base.weight(module)
            flat = weight.flatten(1)
            down = torch.randn(2, *weight.shape[1:], generator=draw) * 0.3 * flat.norm() / flat.shape[1] ** 0.5
            up = torch.randn(weight.shape[0], 2, generator=draw) / weight.shape[0] ** 0.5
            m = flat.norm(dim=1) * (1 + 0.1 * torch.rand(len(flat), generator=draw))
            ones = [1] * (weight.ndim - 2)
            tensors = {"down": down, "up": up.reshape(-1, 2, *ones), "dora": m.reshape(-1, 1, *ones)}
            adapters[module] = Adapter("lora", tensors, 2.0)
    return unet, Lora(adapters, base="sd15")


def of(file: dict[str, torch.Tensor], module: ModuleName) -> dict[str, np.ndarray]:
    name = "lora_unet_" + module.path.replace(".", "_") + "."
    return {key.removeprefix(name): t.double().numpy() for key, t in file.items() if key.startswith(name)}


def test_comfyui_draws_with_the_plain_version_what_was_trained(dora, tmp_path):
    unet, lora = dora
    assert has_dora(lora)
    plain = without_dora(lora, {"unet": unet}, rank=6)
    assert plain.plain
    assert not has_dora(plain)
    save_lora(lora, tmp_path / "dora.safetensors", "kohya")
    save_lora(plain, tmp_path / "plain.safetensors", "kohya")
    files = load_file(tmp_path / "dora.safetensors"), load_file(tmp_path / "plain.safetensors")
    wrong, weights = [], ModelWeights({"unet": unet})
    for module, adapter in lora.adapters.items():
        weight = weights.weight(module).flatten(1).double().numpy()
        delta = (adapter.up.flatten(1) @ adapter.down.flatten(1)).double().numpy() * adapter.scale
        expected = paper(weight, delta, adapter.tensors["dora"].flatten(1).double().numpy())
        change = np.linalg.norm(expected - weight)
        wrong.append(np.linalg.norm(comfyui(weight, of(files[0], module)) - expected) / change)
        off = np.linalg.norm(comfyui(weight, of(files[1], module)) - expected) / change
        assert off == pytest.approx(plain.errors[module], abs=1e-4)
        values = np.linalg.svd(expected - weight, compute_uv=False)
        assert plain.errors[module] == pytest.approx(np.sqrt((values[6:] ** 2).sum()) / change, abs=1e-4)
    assert np.mean(wrong) > 0.1  # what the plain version is for
    assert np.mean(list(plain.errors.values())) < np.mean(wrong)
    assert told(plain, "a.safetensors").startswith(
        "a.safetensors is for ComfyUI, which computes DoRA otherwise: a plain"
    )


def test_with_all_directions_nothing_is_lost_and_others_stay(dora):
    unet, lora = dora
    other = ModuleName("unet", "conv_in")
    shape = unet.conv_in.weight.shape
    extra = Adapter("lora", {"down": torch.ones(1, *shape[1:]), "up": torch.ones(shape[0], 1, 1, 1)}, 1.0)
    mixed = Lora({**lora.adapters, other: extra}, {"ss_seed": "1"}, "sd15")
    plain = without_dora(mixed, {"unet": unet}, rank=1000)
    assert plain.adapters[other] is extra
    assert plain.metadata == mixed.metadata
    outputs = []
    for each in (mixed, plain):
        with apply_lora({"unet": unet}, each), torch.no_grad():
            draw = torch.Generator().manual_seed(1)
            states = torch.randn(1, 12, unet.config.cross_attention_dim, generator=draw)
            outputs.append(unet(torch.randn(1, 4, 8, 8, generator=draw), 17, states)[0])
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="no DoRA"):
        without_dora(Lora({other: extra}), {"unet": unet})


def test_the_command_writes_it_beside_and_says_so(tmp_path, capsys, monkeypatch):
    from sd_ext.cli import main

    from . import tiny

    monkeypatch.chdir(tmp_path)
    pipe, lora = tiny.trained("dora")
    pipe = tiny.build_tiny_pipeline()
    pipe.save_pretrained("base", safe_serialization=True)
    save_lora(lora, "d.safetensors", "diffusers")
    assert main(["convert", "lora", "d.safetensors", "k.safetensors"]) == 0
    assert "--base-model MODEL writes a plain LoRA for it" in capsys.readouterr().err
    assert main(["convert", "lora", "d.safetensors", "k.safetensors", "--overwrite", "--base-model", "base"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["k.safetensors", "k_comfyui.safetensors"]
    assert "k_comfyui.safetensors is for ComfyUI" in said.err
    made, weights = read_lora("k_comfyui.safetensors"), ModelWeights(pipe)
    for module in made.adapters:
        expected = lora.delta(module, weights.weight(module))
        error = (made.delta(module) - expected).norm() / expected.norm()
        assert error < 0.6
    save_lora(tiny.trained("lora")[1], "l.safetensors", "kohya")
    assert main(["convert", "lora", "l.safetensors", "x.safetensors", "--base-model", "base"]) == 2
    assert "holds no DoRA" in capsys.readouterr().err
