"""Folders of pictures, broken ones among them, and the order in which steps see them."""

import shutil

import pytest
import torch
from PIL import Image

from sd_ext.errors import InputError
from sd_ext.training.data.draws import Stream, stream_generator
from sd_ext.training.data.pictures import Pictures


@pytest.fixture
def own_folder(picture_folder, tmp_path):
    return shutil.copytree(picture_folder, tmp_path / "set")


def test_broken_pictures_are_skipped_counted_and_named(own_folder):
    (own_folder / "red_bar.png").write_bytes(b"not a picture")
    whole = (own_folder / "blue_bar.png").read_bytes()
    (own_folder / "blue_bar.png").write_bytes(whole[: len(whole) // 2])
    (own_folder / "green_bar.png").unlink()
    pictures = Pictures(own_folder, 16)
    assert len(pictures) == len(pictures.captions) == 9
    assert sorted(line.split(":")[0] for line in pictures.skipped) == ["blue_bar.png", "green_bar.png", "red_bar.png"]
    assert "red bar" not in pictures.captions


def test_no_readable_picture_at_all(own_folder):
    for path in own_folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 12 pictures .* can be used; first: red_circle.png"):
        Pictures(own_folder, 16)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{not json", "line 1"), ('{"text": "a"}', "line 1"), ("[1]", "line 1"), ("", "lists no pictures")],
)
def test_damaged_metadata(own_folder, line, message):
    (own_folder / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        Pictures(own_folder, 16)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="no folder of pictures"):
        Pictures(tmp_path / "nowhere", 16)
    with pytest.raises(InputError, match="holds no pictures"):
        Pictures(tmp_path, 16)


def test_splits(picture_folder):
    assert len(Pictures(picture_folder, 16, "train")) == 11
    assert Pictures(picture_folder, 16, "held_out").captions == ["black bar"]
    with pytest.raises(InputError, match="split 'other'"):
        Pictures(picture_folder, 16, "other")


def test_without_metadata_every_picture_counts(own_folder):
    (own_folder / "metadata.jsonl").unlink()
    assert len(Pictures(own_folder, 16)) == 12


def test_pixels_are_fitted_to_a_square_on_white(tmp_path):
    Image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    pixels = Pictures(tmp_path, 8).pixels(0)
    assert pixels.shape == (3, 8, 8)
    assert torch.equal(pixels, torch.ones(3, 8, 8))


def test_pictures_too_many_for_memory_are_read_again(picture_folder, monkeypatch):
    kept = Pictures(picture_folder, 16)
    monkeypatch.setattr("sd_ext.training.data.pictures.IN_MEMORY", 0)
    read = Pictures(picture_folder, 16)
    assert not read._pixels
    assert torch.equal(kept.pixels(3), read.pixels(3))


def test_draws_are_a_function_of_their_place_and_nothing_else():
    """Other seeds, other streams, other steps and positions: other numbers."""
    places = [*((0, stream) for stream in Stream), (1, Stream.SAMPLE), (0, Stream.SAMPLE, 5), (0, Stream.SAMPLE, 5, 1)]

    def draws() -> list[tuple[float, ...]]:
        return [tuple(torch.rand(4, generator=stream_generator(*place)).tolist()) for place in places]

    assert draws() == draws()
    assert len(set(draws())) == len(places)
