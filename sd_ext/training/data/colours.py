"""Brings what a picture file holds to 8-bit sRGB: colour profiles, 16 and 32 bits, floating point."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

PROBE = [(r, g, b) for r in (0, 64, 128, 255) for g in (0, 64, 128, 255) for b in (0, 64, 128, 255)]


def to_8_bit(picture: Image.Image) -> tuple[Image.Image, str]:
    """A picture of one channel with more than 8 bits in 8 bits; others as they are.

    16 bits are divided by 256. Of 32 bits and floating point no one says what white is: it is taken to be the smallest
    of the customary values (1 for floating point, then 255, 65,535 and 2^32 - 1) that no pixel exceeds.

    Returns:
        (picture, what was taken for white, or "").

    Raises:
        ValueError: the picture holds NaN or infinity.
    """
    if picture.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
        return like(picture, np.asarray(picture) >> 8), ""
    if picture.mode not in ("I", "F"):
        return picture, ""
    values = np.asarray(picture)
    values = values.view(np.uint32) if picture.mode == "I" else values
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    largest, whites = float(values.max(initial=0)), (1.0, 255.0, 65535.0, 2.0**32 - 1)
    white = next((w for w in whites[picture.mode == "I" :] if largest <= w), largest)
    kind = "floating point" if picture.mode == "F" else "32 bits"
    scaled = (values.astype(np.float64).clip(0, white) * (255 / white)).round()
    return like(picture, scaled), f"is of {kind}; {white:,.6g} is taken for white"


def like(picture: Image.Image, values: Any) -> Image.Image:
    """A picture in 8-bit grey, with the colour profile and orientation of another."""
    made = Image.fromarray(values.astype(np.uint8))
    made.info = dict(picture.info)
    return made


@lru_cache(64)
def profile_of(data: bytes) -> tuple[Any, str, bool]:
    """Open a colour profile.

    Returns:
        (profile, its name, whether it is sRGB: colours change by 1 of 255 at most; names of profiles are not reliable).

    Raises:
        OSError, ImageCms.PyCMSError: it is damaged.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    inside: Any = profile.profile
    name = " ".join((inside.profile_description or "without a name").split())
    if inside.xcolor_space.strip() != "RGB":
        return profile, name, False
    probe = Image.new("RGB", (len(PROBE), 1))
    probe.putdata(PROBE)
    made = ImageCms.profileToProfile(probe, profile, srgb(), outputMode="RGB")
    change = np.asarray(made).astype(int) - np.asarray(probe).astype(int)
    return profile, name, bool(np.abs(change).max() <= 1)


def to_srgb(picture: Image.Image) -> tuple[Image.Image, str]:
    """Convert a picture with a colour profile to sRGB, as viewers do; transparency stays as it is.

    Returns:
        (picture, what was done or could not be done, or "").
    """
    data = picture.info.get("icc_profile")
    if not data:
        return picture, "is of CMYK without a colour profile; its colours are a guess" if picture.mode == "CMYK" else ""
    try:
        profile, name, same = profile_of(data)
        if same:
            return picture, ""
        made = converted(picture, profile)
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        return picture, f"has a colour profile that cannot be used ({error}); its colours are taken as sRGB"
    made.info.pop("icc_profile", None)
    return made, f"colours are converted from {name} to sRGB"


def converted(picture: Image.Image, profile: Any) -> Image.Image:
    """Convert colours from a profile to sRGB; RGB, with the alpha channel the picture has."""
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    space = profile.profile.xcolor_space.strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
    if mode is None:
        raise ValueError(f"it is for {space}")
    if (mode == "CMYK") != (picture.mode == "CMYK"):
        raise ValueError(f"it is for {space}, and the picture is {picture.mode}")
    plain = picture if picture.mode == mode else picture.convert(mode)
    made = ImageCms.profileToProfile(plain, profile, srgb(), outputMode="RGB")
    assert made is not None  # only in place nothing is returned
    if alpha is not None:
        made.putalpha(alpha)
    made.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return made


@lru_cache(1)
def srgb() -> Any:
    """The profile of sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
