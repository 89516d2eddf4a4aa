"""Colours as a viewer shows them, whatever the file stores them as."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from sd_ext.training.data.images import decode_picture, on_white

DISPLAY_P3 = {  # the primaries, adapted to D50
    b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.15710, 0.06657, 0.78407)
}  # fmt: skip


def display_p3() -> bytes:
    """The profile of every picture from an iPhone, made from sRGB's, whose name it keeps."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(struct.unpack(">I", profile[128:132])[0]):
        tag, offset, _ = struct.unpack(">4sII", profile[132 + 12 * i : 144 + 12 * i])
        if tag in DISPLAY_P3:
            numbers = (round(value * 65536) for value in DISPLAY_P3[tag])
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *numbers)
    return bytes(profile)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def linear(colour) -> np.ndarray:
    share = np.asarray(colour) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def from_p3(colour) -> np.ndarray:
    """By the published matrices: both spaces have sRGB's curve."""
    to_srgb = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
    light = np.clip(to_srgb @ linear(colour), 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_a_profile_are_those_that_a_viewer_shows(mode):
    for colour in ((220, 90, 60), (40, 180, 60), (128, 128, 128)):
        plain = Image.new("RGB", (8, 8), colour)
        data = encoded(plain.quantize(2) if mode == "P" else plain.convert(mode), icc_profile=display_p3())
        picture, notes = decode_picture(data)
        assert np.abs(np.array(on_white(picture).getpixel((3, 3))) - from_p3(colour)).max() < 2.5
        assert [note.startswith("colours are converted from ") for note in notes] == [True]


def test_transparency_stays_and_srgb_is_left_as_it_is():
    half = Image.new("RGBA", (8, 8), (220, 90, 60, 77))
    picture, _ = decode_picture(encoded(half, icc_profile=display_p3()))
    assert picture.getchannel("A").getextrema() == (77, 77)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture, notes = decode_picture(encoded(half, icc_profile=srgb))
    assert (np.asarray(picture) == np.asarray(half)).all()
    assert notes == []


def test_what_is_guessed_is_said():
    for data, said in (
        (encoded(Image.new("RGB", (8, 8)), icc_profile=b"damaged" * 40), "has a colour profile that cannot be used"),
        (encoded(Image.new("CMYK", (8, 8)), "JPEG"), "is of CMYK without a colour profile"),
        (encoded(Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 9)]), "holds 2"),
    ):
        _, (note,) = decode_picture(data)
        assert note.startswith(said)


@pytest.mark.parametrize(
    ("kind", "white"), [(np.float32, 1.0), (np.float32, 255.0), (np.int32, 255), (np.int32, 65535), (np.uint16, 65535)]
)
def test_more_than_8_bits(kind, white):
    """A grey ramp from black to white, whatever white is."""
    shares = np.linspace(0, 1, 16)
    ramp = np.tile((shares * white).astype(kind), (16, 1))
    picture, _ = decode_picture(encoded(Image.fromarray(ramp), "TIFF"))
    assert np.abs(np.asarray(picture)[0] - 255 * shares).max() <= 1


def test_values_that_are_no_numbers():
    with pytest.raises(ValueError, match="no numbers"):
        decode_picture(encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "WEBP", "TGA", "QOI"])
def test_kinds_of_files_that_pillow_reads(kind):
    from PIL import features

    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    picture, _ = decode_picture(encoded(Image.new("RGB", (32, 32), (200, 60, 30)), kind))
    assert np.abs(np.array(on_white(picture).getpixel((9, 9))) - (200, 60, 30)).max() < 8
