"""Checks every picture once before training: whether it can be used, its sizes, and a digest of its file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.plain_files import why_not
from sd_ext.training.data.buckets import Buckets, Size, centre, cover, room
from sd_ext.training.data.images import (
    UNREADABLE,
    covering,
    crop_to,
    decode_picture,
    has_proportions,
    on_white,
    open_picture,
)
from sd_ext.training.data.items import FileReader, Item, Refused
from sd_ext.training.data.known import Known, State, state_of

MUCH_LOST = 0.3  # a larger share of a picture's area that is cut off is reported
MUCH_ENLARGED = 1.5


@dataclass(frozen=True)
class Sample:
    """A picture at one training size.

    Args:
        item: the picture.
        size: height and width at which it is trained on, in pixels.
        original: height and width of the upright picture in the file, in pixels.
        digest: sha256 of the file's bytes, hexadecimal.
        view: number of the (picture, size) pair; repeats of a picture at one size share it.
        masked: whether it has a mask.
    """

    item: Item
    size: Size
    original: Size
    digest: str
    view: int
    masked: bool = False

    @property
    def weight(self) -> float:
        """Factor of the sample's loss."""
        return self.item.weight

    @property
    def room(self) -> tuple[int, int]:
        """The largest top and left of a crop, in pixels of the scaled picture."""
        return room(self.original, self.size)

    @property
    def crop(self) -> tuple[int, int]:
        """Top and left of the centre crop, in pixels of the scaled picture."""
        return centre(self.original, self.size)

    def time_ids(self, flipped: bool = False, crop: tuple[int, int] | None = None) -> tuple[int, ...]:
        """SDXL's size and crop conditions (Podell et al. 2023, arXiv 2307.01952, section 2.2).

        Args:
            flipped, crop: as for `Pictures.pixels`.

        Returns:
            Original height and width; top and left of the crop; target height and width: six numbers, in pixels. For
            a mirrored picture, left is measured in the mirrored picture.
        """
        top, left = self.crop if crop is None else crop
        return (*self.original, top, self.room[1] - left if flipped else left, *self.size)


@dataclass(frozen=True)
class Wanted:
    """The requirements on pictures, and which part of them is kept in memory.

    Args:
        buckets: chooses the sizes of a picture.
        min_size: least length of the shorter side, in pixels.
        caption: whether pictures without a caption are left out.
        crop: "center", or "random" for a random crop each time a sample is read.
        alpha_mask: use the alpha channel as the mask of pictures that have no mask file.
        keep: whether decoded pixels are kept in memory.
    """

    buckets: Buckets
    min_size: int
    caption: bool
    crop: str
    alpha_mask: bool
    keep: bool

    def __post_init__(self) -> None:
        if self.crop not in ("center", "random"):
            raise UnknownNameError("crop", self.crop, ("center", "random"))


@dataclass
class Look:
    """The result of checking one picture.

    Args:
        problem: why it cannot be used; empty if it can, and only then are the other fields filled.
        original: height and width of the upright picture, in pixels.
        digest: sha256 of the file's bytes, hexadecimal.
        masked: whether it has a mask.
        sizes: height and width of each of its samples.
        pixels: for each size (3, height, width) uint8; empty unless pixels are kept in memory.
        notes: what is converted, guessed, cut or enlarged.
    """

    problem: str = ""
    original: Size = (0, 0)
    digest: str = ""
    masked: bool = False
    sizes: list[Size] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    notes: tuple[str, ...] = ()


PICTURES = "pictures 1"  # kind of answers in `Known`; count up whenever reading a picture or its notes change


def look_at(item: Item, wanted: Wanted, known: Known | None = None) -> Look:
    """Read and decode a picture and its mask. Problems are returned in `Look.problem`, not raised.

    Args:
        item: the picture.
        wanted: what is asked of it.
        known: what is known of files that have not changed; they are not read again.
    """
    if isinstance(item.read, Refused):
        return Look(item.read.reason)
    if wanted.caption and not item.caption:
        if gone := [path for path in item.files if path.is_symlink() and not path.exists()]:
            return Look(f"{gone[0]} {why_not(gone[0])}")
        return Look(": ".join(["no caption", *item.notes]))
    place = None if known is None or wanted.keep else place_of(item, wanted)
    if known and place and (seen := known.get(PICTURES, *place)):
        return fitted(item, wanted, *seen)
    try:
        data = item.read()
        picture, notes = decode_picture(data)
        mask = read_mask(item, picture, wanted.alpha_mask)
    except InputError as error:
        return Look(str(error))
    except UNREADABLE as error:
        return Look(str(error) if type(error) is OSError else f"{type(error).__name__}: {error}")
    found = (picture.height, picture.width), hashlib.sha256(data).hexdigest(), mask is not None, notes
    if known and place:
        known.put(PICTURES, *place, found)
    look = fitted(item, wanted, *found)
    if wanted.keep and not look.problem:
        upright = on_white(picture)
        look.pixels = [kept(covering(upright, size), look.original, size, wanted.crop) for size in look.sizes]
    return look


def fitted(
    item: Item, wanted: Wanted, original: Sequence[int], digest: str, masked: bool, notes: Sequence[str]
) -> Look:
    """The result for a picture that can be read.

    Args:
        item, wanted: as for `look_at`.
        original: height and width, in pixels.
        digest: sha256 of the file's bytes, hexadecimal.
        masked: whether it has a mask.
        notes: what was done to decode it.
    """
    height, width = original
    sizes = wanted.buckets.assign(height, width)
    least = wanted.min_size if sizes else max(wanted.min_size, wanted.buckets.step)
    if min(height, width) < least:
        return Look(f"too small: {width} x {height}, the shorter side must have {least} pixels")
    look = Look("", (height, width), digest, masked, sizes)
    look.notes = (*item.notes, *notes, *fitting(look.original, sizes))
    return look


def place_of(item: Item, wanted: Wanted) -> tuple[str, State] | None:
    """The name of a picture in `Known`, and the state of its files; None if it is not read from plain files."""
    readers = [item.read, *([item.mask] if item.mask and item.masks else [])]
    if not all(isinstance(reader, FileReader) for reader in readers):
        return None
    paths = [(reader.path, reader.offset, reader.size) for reader in readers]  # type: ignore[union-attr]
    states = [state_of(path) for path, _, _ in paths]
    if None in states:
        return None
    name = [(os.path.realpath(path), offset, size) for path, offset, size in paths]
    return repr((name, item.masks and wanted.alpha_mask)), [number for state in states for number in state or ()]


def fitting(original: Size, sizes: list[Size]) -> list[str]:
    """Notes on sizes for which much of a picture is cut off, or it is much enlarged."""
    notes = []
    for size in sizes:
        lost, scale = share_lost(original, size), cover(original, size)[0] / original[0]
        at = f"at {size[1]} x {size[0]}"
        if lost > MUCH_LOST:
            notes.append(f"{lost:.0%} of it is cut off {at}")
        if scale > MUCH_ENLARGED:
            notes.append(f"is enlarged {scale:.1f} times {at}")
    return notes


def share_lost(original: Size, size: Size) -> float:
    """The share of a picture's area that is cut off when it is scaled to cover a size, from 0 to 1."""
    height, width = cover(original, size)
    return 1 - size[0] * size[1] / (height * width)


def kept(pixels: Tensor, original: Size, size: Size, crop: str) -> Tensor:
    """The part of a scaled picture that is kept in memory: its centre crop, or all of it for random crops."""
    return pixels if crop == "random" else crop_to(pixels, centre(original, size), size).clone()


def read_mask(item: Item, picture: Image.Image, alpha_mask: bool) -> Image.Image | None:
    """Read the mask of a picture.

    Args:
        item: the item, whose mask file is read if it has one.
        picture: the decoded picture.
        alpha_mask: without a mask file, use the picture's alpha channel.

    Returns:
        The mask in 8-bit grey, white where the picture is to be learned; None if there is no mask, or it is not used.

    Raises:
        ValueError: the mask has other proportions than the picture.
        any of `UNREADABLE`: the mask cannot be read.
    """
    if not item.masks:
        return None
    if item.mask:
        mask = open_picture(item.mask())
        if not has_proportions(mask, picture):
            sizes = f"{mask.width} x {mask.height} and the picture {picture.width} x {picture.height}"
            raise ValueError(f"the mask has {sizes} pixels; they must have the same proportions")
        return on_white(mask).convert("L")
    if alpha_mask and picture.has_transparency_data:
        return picture.convert("RGBA").getchannel("A")
    return None
