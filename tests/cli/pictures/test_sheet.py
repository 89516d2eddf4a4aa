from __future__ import annotations

from PIL import Image

from sd_ext.cli.pictures.sheet import thumbnail


def test_small_pictures_are_enlarged_in_whole_pixels():
    assert thumbnail(Image.new("RGB", (64, 96), "red")).size == (128, 192)
    assert thumbnail(Image.new("RGB", (1024, 512))).size == (256, 128)
    assert thumbnail(Image.new("L", (200, 200))).mode == "RGB"
