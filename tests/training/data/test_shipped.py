"""The sets that come with the package: found by name, small, and what they say they are."""

import json

import numpy as np
import pytest
from PIL import Image

from sd_ext.errors import InputError
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.shipped import shipped_sets
from sd_ext.training.data.sources import read_items
from sd_ext.training.sets.drawings.concepts import read_concepts

FOLDER = shipped_sets()["high-contrast"]
ROWS = [json.loads(line) for line in (FOLDER / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_set_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [item.caption for item in read_items("high-contrast")] == [row["text"] for row in ROWS]
    assert not Pictures("high-contrast", 64).skipped
    with pytest.raises(InputError, match="no folder of pictures at high-contrats; with sd_ext comes high-contrast"):
        read_items("high-contrats")


def test_a_folder_here_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "high-contrast").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "high-contrast" / "mine.png")
    (tmp_path / "high-contrast" / "mine.txt").write_text("mine")
    assert [item.caption for item in read_items("high-contrast")] == ["mine"]


def test_sixty_different_things_that_scenes_show_too():
    things = [row["concept"] for row in ROWS]
    assert len(set(things)) == len(things) == 60
    assert set(things) <= {concept.name for concept in read_concepts()}
    kinds = {concept.kind for concept in read_concepts() if concept.name in things}
    assert len(kinds) >= 10
    for row in ROWS:
        assert "high contrast" in row["text"] and row["concept"] in row["text"]


def test_the_drawings_are_black_on_white():
    seen = set()
    for row in ROWS:
        pixels = np.asarray(Image.open(FOLDER / row["file_name"])).astype(int)
        assert pixels.shape == (64, 64, 3)
        assert np.ptp(pixels, axis=-1).max() == 0  # grey
        assert pixels.max() == 255 and pixels.min() < 32
        assert ((pixels < 64) | (pixels > 192)).mean() > 0.8
        seen.add(pixels.tobytes())
    assert len(seen) == 60


def test_it_is_small_and_says_whose_it_is():
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert {path.name for path in files} == {row["file_name"] for row in ROWS} | {"metadata.jsonl", "LICENSE.txt"}
    assert sum(path.stat().st_size for path in files) < 300_000
    licence = (FOLDER / "LICENSE.txt").read_text()
    assert "MIT License" in licence and "Microsoft Corporation" in licence and "fluentui-emoji" in licence
