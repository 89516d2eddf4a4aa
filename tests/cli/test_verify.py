"""`sd-ext verify` and `--again`: to the bit, or what differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_ext.cli.pictures import Record, encode, read_record
from sd_ext.cli.verify import differences

from ..few import few


@pytest.fixture
def model(tiny_pipeline_dir, tmp_path):
    shutil.copytree(tiny_pipeline_dir, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def draw(run, model):
    return lambda *options: run("generate", "red apple", "--model", "model", "--steps", 2, *options)


def stored(path, name="changed.png", picture=None, recipe=None, **made):
    """A copy of a picture, with other pixels or another record."""
    record = read_record(path)
    with Image.open(path) as old:
        picture = picture or old.convert("RGB")
    new = Record(recipe or record.recipe, {**record.made, **made})
    (path.parent / name).write_bytes(encode(picture, new))
    return path.parent / name


@pytest.mark.parametrize("form", few(["png", "webp", "jpeg"], 3))
def test_to_the_bit(draw, run, form):
    path = draw("--format", form).paths[0]
    told = run("verify", path)
    assert (told.code, told.out) == (0, f"{path}: to the bit\n")


def test_pictures_of_a_batch_to_the_bit(draw, run, monkeypatch):
    """Kernels may round otherwise for another number of pictures; then each is drawn in company again."""
    paths = draw("--num", 3, "--batch", 3, "--sampler", "euler a").paths[:3]
    assert [read_record(path).company for path in paths] == [(3, 0), (3, 1), (3, 2)]
    again = run("generate", "--again", paths[1], "--json", "--quiet")
    made = json.loads(again.out)["made"]
    assert made["pixels"] == read_record(paths[1]).made["pixels"]
    assert run("verify", paths[2]).out == f"{paths[2]}: to the bit\n"


def test_what_differs_is_named(draw, run, model):
    path = draw().paths[0]
    file = next((model / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    save_file({**tensors, "conv_out.bias": tensors["conv_out.bias"] + 0.5}, file, {"format": "pt"})
    told = run("verify", path)
    assert told.code == 1
    first, *rest = told.out.splitlines()
    assert first == f"{path}: another picture"
    assert [line.split(":")[0].strip() for line in rest] == ["weights"] and "unet" in rest[0]
    as_json = json.loads(run("verify", path, "--json").out)
    assert (as_json["same"], list(as_json["differs"]), as_json["kept"]) == (False, ["weights"], True)


def test_changed_pixels_are_found(draw, run, tmp_path):
    path = (tmp_path / draw().paths[0]).resolve()
    told = run("verify", stored(path, picture=Image.new("RGB", (64, 64), "red")))
    assert told.code == 1
    assert "changed since" in told.out and "another picture" not in told.out


def test_another_table_prompt_and_version(draw, run, tmp_path):
    path = (tmp_path / draw("--sampler", "euler").paths[0]).resolve()
    record = read_record(path)
    changed = stored(
        path, recipe=replace(record.recipe, sampler="dpm++ 2s", prompt="blue heart"),
        versions={**record.made["versions"], "torch": "1.0"}, kernels={**record.made["kernels"], "threads": "99"},
    )  # fmt: skip
    told = run("verify", changed)
    assert told.code == 1
    names = [line.split(":")[0].strip() for line in told.out.splitlines() if line.startswith("  ")]
    assert names == ["table", "prompt", "versions", "kernels"]
    assert f"torch 1.0 -> {torch.__version__}" in told.out


def test_a_picture_that_says_nothing_of_its_pixels(draw, run, tmp_path):
    record = read_record(tmp_path / draw().paths[0])
    (tmp_path / "old.png").write_bytes(encode(Image.new("RGB", (8, 8)), Record(record.recipe)))
    refused = run("verify", "old.png")
    assert (refused.code, refused.out) == (2, "")
    assert "nothing to compare" in refused.err


def test_only_what_was_recorded_can_differ():
    now = {"weights": {"unet": "a", "vae": "b"}, "table": "t", "kernels": {"device": "cpu"}}
    assert not list(differences({}, now))
    assert not list(differences(now, now))
    assert list(differences({"weights": {"unet": "x", "lora": "l"}}, now)) == [
        ("weights", "unet x -> a, lora l -> none, vae none -> b")
    ]


@pytest.mark.parametrize("company", [{"batch": "3"}, {"batch": 10**9}, {"batch": 2, "place": 2}, {"place": -1}])
def test_company_that_cannot_be_is_not_believed(draw, tmp_path, company):
    path = (tmp_path / draw().paths[0]).resolve()
    assert read_record(stored(path, **company)).company == (1, 0)
