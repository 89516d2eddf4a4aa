"""Contact sheets hold every picture, under its caption and beside its name."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageFont

from sd_ext.sheets import WHITE, _cut, contact_sheet, labelled_sheet


def test_a_contact_sheet_holds_every_picture():
    pictures = [Image.new("RGB", (128, 128), colour) for colour in ("red", "green", "blue")]
    titles = ["a title far too long for a picture of this width"] * 3
    sheet = contact_sheet(pictures, 2, titles, gap=8, ground=WHITE)
    assert sheet.size == (2 * 136 + 8, 2 * 152 + 8)
    assert [sheet.getpixel(at) for at in [(70, 70), (206, 70), (70, 222), (206, 222)]] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    assert contact_sheet(pictures, 2, gap=8).height == 2 * 136 + 8  # no room for titles where there are none


def test_the_sheet_has_every_picture_under_its_caption_and_beside_its_name():
    def plain(value: int) -> Image.Image:
        return Image.new("RGB", (32, 24), (value, value, value))

    rows = {"base": [plain(10 * i) for i in range(5)], "trained": [plain(100 + 10 * i) for i in range(5)]}
    captions = ["a", "a caption that is much too long for such a small picture", "", "c", "d"]
    sheet = labelled_sheet(rows, captions, columns=3)
    assert labelled_sheet(rows, captions[:3], columns=3).width == sheet.width
    pixels = np.asarray(sheet)
    for row in rows.values():
        for picture in row:
            same = (pixels == picture.getpixel((0, 0))).all(-1)
            assert same.sum() >= 24 * 32
    bare = labelled_sheet({"": rows["base"]}, captions, columns=5)
    assert bare.height < sheet.height
    assert (np.asarray(bare)[:14] < 128).any()  # captions


class Measured:
    """A font that counts the letters that it is asked to measure."""

    def __init__(self) -> None:
        self.font, self.letters = ImageFont.load_default(11), 0

    def getlength(self, text: str) -> float:
        self.letters += len(text)
        return self.font.getlength(text)


@pytest.mark.parametrize("room", [0.0, 3.0, 12.5, 60.0, 200.0])
def test_a_line_is_cut_where_it_no_longer_fits(room):
    for seed in range(30):
        line = "".join(random.Random(seed).choices("ilW m.,x", k=seed * 3))
        font, cut = Measured(), _cut(line, Measured(), room)
        if font.getlength(line) <= room:
            assert cut == line
            continue
        fitting = [n for n in range(len(line)) if font.getlength(f"{line[:n]}…") <= room]
        assert cut == f"{line[: max(fitting, default=0)].rstrip()}…"


def test_a_caption_as_long_as_a_book_costs_what_a_long_one_does():
    font = Measured()
    assert _cut("a detailed, " * 100_000, font, 200.0).endswith("…")
    assert font.letters < 20_000
