"""The picture set: how many, which captions, what is left out and held out."""

import re
from dataclasses import replace

import pytest

from sd_ext.errors import InputError
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.sources import read_items
from sd_ext.training.sets.glyphs import FONT, clean, corrections, write_imagefolder


def test_at_least_a_thousand_with_unique_captions(drawn_glyphs):
    captions = [glyph.caption for glyph in drawn_glyphs]
    assert len(drawn_glyphs) >= 1000
    assert len(set(captions)) == len(captions)


def test_captions_are_what_people_type(drawn_glyphs):
    captions = {glyph.codepoint: glyph.caption for glyph in drawn_glyphs}
    assert captions[0x1F34E] == "red apple"
    assert captions[0x2764] == "red heart"
    assert captions[0x1F534] == "red circle"
    assert captions[0x1F600] == "grinning face"
    for caption in captions.values():
        assert caption == caption.lower().strip()
        assert re.fullmatch(r"[a-z'\- ]+", caption), caption


def test_held_out_captions_leave_each_colour_and_shape_in_training(drawn_glyphs):
    held_out = {glyph.caption for glyph in drawn_glyphs if glyph.split == "held_out"}
    training = {glyph.caption for glyph in drawn_glyphs if glyph.split == "train"}
    assert held_out == corrections()[1]
    assert len(held_out) >= 12
    for colour, shape in (caption.split() for caption in held_out):
        assert any(f"{colour} {other}" in training for other in ("heart", "circle", "square")), colour
        assert sum(caption.endswith(f" {shape}") for caption in training) >= 4, shape


def test_pieces_and_clock_faces_are_left_out(drawn_glyphs):
    present = {glyph.codepoint for glyph in drawn_glyphs}
    assert present.isdisjoint({0x1F1E6, 0x1F3FB, 0x1F9B0, *range(0x1F550, 0x1F568)})
    assert {0x1F648, 0x1F649, 0x1F64A} <= present  # the three monkeys stay


def test_pictures_are_glyphs_on_white_that_fill_the_picture(drawn_glyphs):
    apple = next(glyph.picture for glyph in drawn_glyphs if glyph.caption == "red apple")
    assert apple.size == (64, 64)
    assert apple.getpixel((0, 0)) == (255, 255, 255)
    red, green, _ = apple.getpixel((32, 40))
    assert red > 150 > green
    dark = apple.convert("L").point(lambda v: 255 * (v < 250)).getbbox()
    assert dark[2] - dark[0] > 45
    assert dark[3] - dark[1] > 45


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("GRINNING FACE", "grinning face"),
        ("LARGE RED SQUARE", "red square"),
        ("WARNING SIGN", "warning"),
        ("WHITE HEART", "white heart"),
        ("BLACK TELEPHONE", "telephone"),
        ("WOMANS HAT", "woman's hat"),
        ("SMILING FACE WITH HEART-SHAPED EYES", "smiling face with heart shaped eyes"),
    ],
)
def test_clean(name, caption):
    assert clean(name) == caption


def test_imagefolder_is_written_and_not_overwritten(tmp_path, drawn_glyphs, monkeypatch):
    monkeypatch.setattr("sd_ext.training.sets.glyphs.glyphs", lambda font: drawn_glyphs[:30])
    assert write_imagefolder(tmp_path / "set") == 30
    pictures = Pictures(tmp_path / "set", 32)
    assert len(pictures) == 30
    assert pictures.captions == [glyph.caption for glyph in drawn_glyphs[:30]]
    assert len(read_items(tmp_path / "set", "train")) == sum(glyph.split == "train" for glyph in drawn_glyphs[:30])
    with pytest.raises(InputError, match="already holds a picture set"):
        write_imagefolder(tmp_path / "set")


def test_font_that_is_not_there():
    with pytest.raises(InputError, match="no font file at /nowhere"):
        FONT.find("/nowhere/font.ttf")


def test_font_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("sd_ext.training.sets.fonts.shutil.which", lambda name: None)
    with pytest.raises(InputError, match=f"apt install {FONT.package}"):
        replace(FONT, places=()).find()
