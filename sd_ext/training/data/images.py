"""From a file's bytes to pixels: pictures (upright, RGB, transparency on white, resized, cropped) and masks."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sd_ext.plain_files import PICTURE_BYTES, read_bytes
from sd_ext.training.data.buckets import Size, cover
from sd_ext.training.data.colours import to_8_bit, to_srgb

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    MemoryError,
    Image.DecompressionBombError,
)  # errors that Pillow and readers raise for files that cannot be used

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture completely: upright as its EXIF orientation says, of 8 bits, its colours in sRGB.

    Args:
        data: the bytes of the file.

    Raises:
        any of `UNREADABLE`: the data is damaged, no picture, or has too many pixels.
    """
    return decode_picture(data)[0]


def decode_picture(data: bytes) -> tuple[Image.Image, list[str]]:
    """`open_picture`, and what was done to the picture on the way: what is converted, guessed or left out of it."""
    knows_heif()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            frames = getattr(picture, "n_frames", 1) if picture.format != "MPO" else 1
            several = f"holds {frames} pictures, of which the first is taken" if frames > 1 else ""
            plain, depth = to_8_bit(picture)
            colours, profile = to_srgb(plain)
            notes = [note for note in (several, depth, profile) if note]
            return ImageOps.exif_transpose(colours), notes
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and not knows_heif():
            raise OSError("a HEIC picture, for which pillow-heif is needed: pip install pillow-heif") from error
        raise OSError("no picture that Pillow can read") from error
    except UNREADABLE:
        raise
    except Exception as error:  # Pillow's decoders raise many other types of errors
        raise OSError(f"{type(error).__name__}: {error}") from error


@cache
def knows_heif() -> bool:
    """Whether pictures as phones take them can be read: through `pillow-heif`, if it is installed."""
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
    except ImportError:
        return False
    register_heif_opener()
    return True


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB; transparent parts become white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    return white.convert("RGB")


def covering(picture: Image.Image, size: Size) -> Tensor:
    """Resize a picture until it covers `size`, keeping its proportions.

    Args:
        picture: an RGB picture.
        size: height and width to cover, in pixels.

    Returns:
        (3, height, width) uint8, each side at least that of `size`.
    """
    height, width = cover((picture.height, picture.width), size)
    scaled = np.array(picture.resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(scaled).permute(2, 0, 1).contiguous()


def has_proportions(mask: Image.Image, picture: Image.Image) -> bool:
    """Whether mask and picture have the same proportions, up to rounding by a pixel."""
    return abs(mask.width * picture.height - mask.height * picture.width) <= max(*mask.size, *picture.size)


def covering_mask(mask: Image.Image, original: Size, size: Size) -> Tensor:
    """Resize a mask to the size that `covering` gives its picture; each pixel is the mean of the area it covers.

    Args:
        mask: 8-bit grey.
        original: height and width of the picture, in pixels.
        size: the size that the picture is scaled to cover.

    Returns:
        (1, height, width) in [0, 1].
    """
    height, width = cover(original, size)
    scaled = np.array(mask.resize((width, height), Image.Resampling.BOX))
    return torch.from_numpy(scaled)[None].float() / 255


def crop_to(pixels: Tensor, corner: tuple[int, int], size: Size) -> Tensor:
    """Crop (..., H, W) to `size` (height, width); `corner` is the top and left of the crop."""
    return pixels[..., corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]


def is_whole_png(path: Path) -> bool:
    """Whether a file is an undamaged PNG: the checksum of each of its chunks is right."""
    try:
        with Image.open(io.BytesIO(read_bytes(path, PICTURE_BYTES)), formats=["PNG"]) as picture:
            picture.verify()
    except Exception:  # Pillow has no common type for what can be wrong with a file
        return False
    return True


def to_uint8(pictures: Tensor) -> np.ndarray:
    """Convert pictures (batch, 3, height, width) in [-1, 1] to (batch, height, width, 3) uint8."""
    array = pictures.detach().float().clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy()
    return np.round((array + 1) * 127.5).astype(np.uint8)
