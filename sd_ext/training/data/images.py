"""From a file's bytes to pixels: pictures (upright, RGB, transparency on white, resized, cropped) and masks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sd_ext.plain_files import PICTURE_BYTES, read_bytes
from sd_ext.training.data.buckets import Size, cover

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    MemoryError,
    Image.DecompressionBombError,
)  # errors that Pillow and readers raise for files that cannot be used


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture completely, and turn it upright as its EXIF orientation says.

    Args:
        data: the bytes of the file.

    Raises:
        any of `UNREADABLE`: the data is damaged, no picture, or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            if picture.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
                return ImageOps.exif_transpose(Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)))
            return ImageOps.exif_transpose(picture)
    except UNREADABLE:
        raise
    except Exception as error:  # Pillow's decoders raise many other types of errors
        raise OSError(f"{type(error).__name__}: {error}") from error


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
