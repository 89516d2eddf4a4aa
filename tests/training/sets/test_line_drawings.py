"""Line drawings of Symbola: black on white, captioned with words the embedded model knows."""

import json

import numpy as np
import pytest
from PIL import Image

from sd_ext.errors import InputError
from sd_ext.training.sets.line_drawings import FONT, write_line_drawings


def test_an_imagefolder_of_drawings_without_colour(line_drawings):
    entries = [json.loads(line) for line in (line_drawings / "metadata.jsonl").read_text().splitlines()]
    assert len({entry["text"] for entry in entries}) == len(entries) == 60
    for entry in entries:
        pixels = np.asarray(Image.open(line_drawings / entry["file_name"])).astype(int)
        assert pixels.shape == (64, 64, 3)
        assert (pixels.max(-1) == pixels.min(-1)).all()  # grey
        assert pixels[0, 0, 0] == 255  # on white
        assert pixels.min() < 64 < 192 < np.median(pixels[:3])  # with something black in the middle


def test_the_drawings_differ(line_drawings):
    seen = {Image.open(path).tobytes() for path in line_drawings.glob("*.png")}
    assert len(seen) == 60


def test_what_cannot_work(line_drawings, tmp_path):
    with pytest.raises(InputError, match="already holds a picture set"):
        write_line_drawings(line_drawings)
    with pytest.raises(InputError, match="no font file at"):
        FONT.find(tmp_path / "nowhere.ttf")
