"""The texts of PNG files: as Pillow reads them, and refused where a file is not whole or too large."""

import os
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_ext.cli.pictures.png import LONGEST, SIGNATURE, read_png_texts
from sd_ext.errors import InputError


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size=(1, 1)) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IEND", b"")


def test_texts_are_those_that_pillow_reads(tmp_path):
    info = PngInfo()
    info.add_text("plain", "café")
    info.add_text("packed", "x" * 1000, zip=True)
    info.add_itxt("prompt", "日本 🍎", lang="ja", tkey="t")
    info.add_itxt("packed too", "λ" * 1000, zip=True)
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png", pnginfo=info)
    with Image.open(tmp_path / "a.png") as picture:
        assert read_png_texts(tmp_path / "a.png") == dict(picture.text) != {}


def test_no_pixel_is_decoded(tmp_path):
    """A picture of 2^31 pixels to each side would not fit any memory; its texts are read all the same."""
    (tmp_path / "a.png").write_bytes(png(chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", b"?"), size=(2**31 - 1, 2**31 - 1)))
    assert read_png_texts(tmp_path / "a.png") == {"a": "b"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a",
        png()[:-12],
        png(chunk(b"tEXt", b"a\0b"))[:-20],
        png(chunk(b"tEXt", b"a\0b")).replace(b"a\0b", b"a\0c"),
        png(chunk(b"iTXt", b"a\0\0\0\0\0\xff")),
        png(chunk(b"zTXt", b"a\0\0not packed")),
        png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(LONGEST + 1)))),
        png(chunk(b"tEXt", b"a\0" + bytes(LONGEST))),
        png(*(chunk(b"tEXt", b"%d\0b" % i) for i in range(1001))),
        SIGNATURE + b"\xff\xff\xff\xfftEXt",
    ],
)
def test_what_is_not_whole_is_one_sentence(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png cannot be read as a picture"):
        read_png_texts(tmp_path / "a.png")


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="a named pipe"):
        read_png_texts(tmp_path / "a.png")


def test_other_pictures_are_no_pngs(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="it is no PNG"):
        read_png_texts(tmp_path / "a.jpg")
