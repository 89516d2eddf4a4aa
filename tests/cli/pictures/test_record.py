"""What a picture says of its making comes back as it was."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sd_ext.cli.pictures import KEY, Record, encode, read_record
from sd_ext.cli.request import Recipe
from sd_ext.errors import InputError

RECIPE = Recipe(
    prompt="red apple",
    seed=7,
    sampler="dpm++ 2m",
    grid="karras",
    guidance=4.5,
    size="64x96",
    device="cpu",
    dtype="float32",
)
PICTURE = Image.new("RGB", (64, 96), "red")


@given(
    prompt=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
    seed=st.integers(0, 2**64 - 1),
    guidance=st.floats(0, 100),
)
def test_a_png_gives_its_recipe_back(tmp_path_factory, prompt, seed, guidance):
    path = tmp_path_factory.getbasetemp() / "recipe.png"
    record = Record(dataclasses.replace(RECIPE, prompt=prompt, seed=seed, guidance=guidance), {"software": "test"})
    path.write_bytes(encode(PICTURE, record))
    assert read_record(path) == record


def test_other_programs_keys_are_left_to_them(tmp_path):
    """`prompt` and `workflow` are ComfyUI's."""
    (tmp_path / "a.png").write_bytes(encode(PICTURE, Record(RECIPE)))
    with Image.open(tmp_path / "a.png") as picture:
        assert set(picture.text) == {KEY, "parameters", "Software"}


@pytest.mark.parametrize("content", [b"", b"no picture", encode(PICTURE), encode(PICTURE, Record(RECIPE))[:60]])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.png"):
        read_record(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object"),
        ('{"recipe": 3}', "recipe must be"),
        ('{"recipe": {}}', "no prompt"),
        ('{"recipe": {"prompt": "x", "steps": "many"}}', "steps must be a whole number"),
        ('{"recipe": {"prompt": "x", "steps": 0}}', "--steps 0"),
        ('{"recipe": {"prompt": "x", "size": "7x7"}}', "--size"),
        ('{"recipe": {"prompt": "x", "telepathy": true}}', "does not know: telepathy"),
        ('{"recipe": {"prompt": "x"}, "made": []}', "made must be"),
    ],
)
def test_records_that_cannot_be_followed(text, message):
    with pytest.raises(InputError, match=message) as refused:
        Record.parse(text, "a.png")
    assert "a.png" in str(refused.value)


def test_a_record_is_short():
    """What is not set is not stored."""
    stored = json.loads(Record(Recipe(prompt="x")).text())["recipe"]
    assert stored.items() >= {"prompt": "x", "model": "embedded", "steps": 20, "seed": 0}.items()
    assert not {"negative", "sampler", "size", "guidance", "plain_prompt"} & set(stored)
