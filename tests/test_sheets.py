"""Contact sheets hold every picture, under its caption and beside its name."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sd_ext.sheets import WHITE, contact_sheet, labelled_sheet


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
