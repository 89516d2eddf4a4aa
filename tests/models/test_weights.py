"""Which files make up a part's weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from sd_ext.errors import ModelError
from sd_ext.models.weights import stored_tensors, variants_in, weight_files


@pytest.fixture
def make(tmp_path):
    """`make("model.safetensors", ...)` puts such files into a folder, each with one tensor of the file's name."""

    def make(*names):
        for name in names:
            if name.endswith(".safetensors"):
                save_file({name: torch.ones(2, 3)}, tmp_path / name)
            else:
                (tmp_path / name).write_text("{}")
        return tmp_path

    return make


def chosen(folder, variant=None):
    return [path.name for path in weight_files(folder, variant)]


PIECES = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors"],
        PIECES,
        ["model.fp16.safetensors"],
        [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)],
        [f"model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)],
        ["unusual.safetensors"],
    ],
)
def test_every_spelling_by_itself(make, names):
    folder = make(*names)
    assert chosen(folder) == names
    variant = "fp16" if "fp16" in names[0] else ""
    assert chosen(folder, variant) == names
    assert variants_in(folder) == {variant}
    assert [stored.key for stored in stored_tensors(weight_files(folder))] == names
    for stored in stored_tensors(weight_files(folder)):
        assert tuple(stored.read().shape) == stored.shape == (2, 3)
    with pytest.raises(ModelError, match=r"holds no bf16 weights as safetensors; there is .*: give its variant"):
        weight_files(folder, "bf16")


def test_plain_weights_come_first_and_variants_are_told_apart(make):
    folder = make("model.safetensors", "model.fp16.safetensors", "model.non_ema.safetensors", "other.safetensors")
    assert chosen(folder) == chosen(folder, "") == ["model.safetensors"]
    assert chosen(folder, "non_ema") == ["model.non_ema.safetensors"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"several variants \(fp16, non_ema\) and no plain weights"):
        weight_files(folder)


def test_pickles_are_named_and_not_taken(make):
    folder = make("pytorch_model.bin", "old.CKPT")
    with pytest.raises(ModelError, match=r"as safetensors; old.CKPT, pytorch_model.bin would be read as pickle"):
        weight_files(folder)
    with pytest.raises(ModelError, match=r"no weights as safetensors$"):
        weight_files(folder / "nowhere")


def test_pieces_must_all_be_there(make):
    folder = make(PIECES[0])
    with pytest.raises(ModelError, match="lacks pieces of diffusion_pytorch_model: 2 of 2"):
        weight_files(folder)
    make(PIECES[1])
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": PIECES[0], "b": PIECES[1]}}))
    assert chosen(folder) == PIECES
    index.write_text(json.dumps({"weight_map": {"a": PIECES[0], "b": "diffusion_pytorch_model-9.safetensors"}}))
    with pytest.raises(ModelError, match=r"lists diffusion_pytorch_model-9\.safetensors, which is not there"):
        weight_files(folder)
    for damaged in ("{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        index.write_text(damaged)
        with pytest.raises(ModelError, match="does not say which file holds which tensor"):
            weight_files(folder)
    make("diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match=r"holds weights twice: diffusion_pytorch_model.safetensors, and in pieces"):
        weight_files(folder)


def test_damaged_files_are_named(make):
    folder = make("model.safetensors")
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        list(stored_tensors(weight_files(folder)))
