"""What is said of a LoRA file is true: against what was put into it, and numpy."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError
from sd_ext.lora import Adapter, Lora, describe, read_lora, save_lora
from sd_ext.lora.blocks import block_of

from . import tiny

HEADER = {
    "ss_tag_frequency": json.dumps({"10_cat": {"cat": 10, "red ": 3, "sofa": 3}, "2_dog": {"dog": 4, "red": 1}}),
    "ss_learning_rate": "0.0001", "ss_optimizer": "AdamW8bit", "ss_steps": "1200", "ss_noise_offset": "None",
    "modelspec.title": "My Style", "modelspec.trigger_phrase": "ohwx", "modelspec.tags": "style, red",
}  # fmt: skip


@pytest.fixture(scope="module")
def described(sd15_lora, tmp_path_factory):
    path = tmp_path_factory.mktemp("described") / "style.safetensors"
    save_lora(sd15_lora, path, "kohya", dtype=torch.float16, metadata=HEADER)
    return path, describe(path)


@pytest.fixture(scope="module")
def sd15_lora():
    from .conftest import _trained

    return _trained("sd15").lora


def test_numbers_by_block(described):
    path, found = described
    assert found.family == "sd15"
    assert found.kinds == {"lora": len(read_lora(path))}
    tensors = load_file(path)
    assert found.dtypes["f16"] == len([t for t in tensors.values() if t.dtype == torch.float16])
    norms, ranks = {}, {}
    for module, adapter in read_lora(path).adapters.items():
        up, down = (adapter.tensors[name].double().flatten(1).numpy() for name in ("up", "down"))
        block = block_of(module)
        norms[block] = norms.get(block, 0) + np.square(adapter.alpha / len(down) * up @ down).sum()
        ranks.setdefault(block, set()).add(len(down))
    assert found.norms.keys() == norms.keys() == ranks.keys()
    for block, square in norms.items():
        assert found.norms[block] == pytest.approx(square**0.5, rel=1e-5)
        assert found.ranks[block] == sorted(ranks[block])
    scales = {}
    for module, adapter in read_lora(path).adapters.items():
        scales.setdefault(block_of(module), set()).add(adapter.alpha / len(adapter.tensors["down"]))
    assert found.strengths == {block: sorted(each) for block, each in scales.items()}
    assert found.parts == {part: len(read_lora(path).of_part(part)) for part in ("unet", "text_encoder")}


def test_what_the_header_says(described):
    path, found = described
    assert (found.title, found.trigger) == ("My Style", "ohwx")
    assert found.tags == {"cat": 10, "dog": 4, "red": 4, "sofa": 3, "style": 1}
    assert found.training == {
        "learning rate": "0.0001", "optimizer": "AdamW8bit", "steps": "1200", "network": "networks.lora",
        "base version": "sd_v1", "prediction": "epsilon",
    }  # fmt: skip
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert (found.tensors_hash, found.intact) == (hashlib.sha256(data).hexdigest(), True)
    lines = found.lines()
    assert lines["tags"] == "cat (10), dog (4), red (4), sofa (3), style (1)"
    assert lines["for"] == "Stable Diffusion 1.x"
    assert all(text and "\n" not in text for text in lines.values())


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_reads_each_kind_and_format(kind, tmp_path):
    lora = tiny.trained(kind)[1]
    save_lora(lora, tmp_path / "k.safetensors", "kohya")
    found = {reader.program: reader.how for reader in describe(tmp_path / "k.safetensors").readers}
    assert found["A1111"] == "yes"
    assert (found["ComfyUI"] == "yes") == (kind != "dora")
    told = {"lora": "without the text encoder's attention", "dora": "without DoRA's"}  # which lacks out_proj
    assert found["Diffusers"].startswith(told.get(kind, "no, since"))
    if kind in ("lora", "dora"):
        save_lora(lora, tmp_path / "d.safetensors", "diffusers")
        found = {reader.program: reader.how for reader in describe(tmp_path / "d.safetensors").readers}
        assert found["Diffusers"] == "yes"
        assert found["A1111"].startswith("no; `sd-ext convert lora")
        assert found["ComfyUI"].startswith("otherwise" if kind == "dora" else "at another strength")


def test_norms_that_depend_on_the_base_and_unknown_families(tmp_path):
    save_lora(tiny.trained("dora")[1], tmp_path / "d.safetensors", "kohya")
    assert describe(tmp_path / "d.safetensors").norms == {}
    both = Adapter("lora", {"down": torch.ones(1, 4), "up": torch.ones(4, 1)}, 1.0)
    save_lora(Lora({("unet", "conv_in"): both}), tmp_path / "u.safetensors", "diffusers")
    assert describe(tmp_path / "u.safetensors").family is None
    assert describe(tmp_path / "u.safetensors").lines()["for"] == "not told by its modules"


def test_changed_tensors_are_noticed(described, tmp_path):
    path, _ = described
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(content)
    found = describe(tmp_path / "changed.safetensors")
    assert found.intact is False
    assert found.lines()["tensors' hash"].endswith("but its tensors are others")


def test_what_is_no_lora_is_refused_by_name(tmp_path):
    save_file({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, tmp_path / "e.safetensors")
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>")
    for name, complaint in (("e", "an embedding"), ("page", "is an HTML page"), ("none", "is not there")):
        with pytest.raises(InputError, match=complaint) as refused:
            describe(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(refused.value)
