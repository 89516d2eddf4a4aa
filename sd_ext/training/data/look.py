"""The first look at a picture: whether it can be used, its size, what its file holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.data.buckets import Buckets, Size, centre, room
from sd_ext.training.data.images import UNREADABLE, covering, crop_to, has_proportions, on_white, open_picture
from sd_ext.training.data.items import Item, Refused


@dataclass(frozen=True)
class Sample:
    """A picture at one of its sizes.

    Args:
        item: the picture.
        size: height and width it is trained at.
        original: height and width of the file, upright.
        digest: sha256 of the file's bytes, hexadecimal.
        view: the same for samples whose pixels are the same.
    """

    item: Item
    size: Size
    original: Size
    digest: str
    view: int

    @property
    def weight(self) -> float:
        """Of its loss."""
        return self.item.weight

    @property
    def room(self) -> tuple[int, int]:
        """The largest top and left that a crop can have, in pixels of the scaled picture."""
        return room(self.original, self.size)

    @property
    def crop(self) -> tuple[int, int]:
        """Top and left of the crop at the centre."""
        return centre(self.original, self.size)

    def time_ids(self, flipped: bool = False, crop: tuple[int, int] | None = None) -> tuple[int, ...]:
        """SDXL's conditions (Podell et al. 2023, arXiv 2307.01952, section 2.2).

        Args:
            flipped, crop: as for `Pictures.pixels`.

        Returns:
            Original height and width; top and left of the crop, of a mirrored picture from its mirrored left; target
            height and width.
        """
        top, left = self.crop if crop is None else crop
        return (*self.original, top, self.room[1] - left if flipped else left, *self.size)


@dataclass(frozen=True)
class Wanted:
    """What pictures must be like to be used, and what is kept of them.

    Args:
        buckets: gives a picture's sizes.
        min_size: pixels that the shorter side must have.
        caption: whether a picture must have one.
        crop: "center", or "random" for one drawn anew each time.
        alpha_mask: the opacity of a picture that has no mask is its mask.
        keep: whether pixels are kept.
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
    """What was found: a problem, or a size for each sample, and pixels for each size where they are kept."""

    problem: str = ""
    original: Size = (0, 0)
    digest: str = ""
    masked: bool = False
    sizes: list[Size] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)


def look_at(item: Item, wanted: Wanted) -> Look:
    """Read and decode a picture and its mask. What is wrong with them is told, not raised."""
    if isinstance(item.read, Refused):
        return Look(item.read.reason)
    if wanted.caption and not item.caption:
        return Look("no caption")
    try:
        data = item.read()
        picture = open_picture(data)
        mask = read_mask(item, picture, wanted.alpha_mask)
    except InputError as error:
        return Look(str(error))
    except UNREADABLE as error:
        return Look(f"{type(error).__name__}: {error}")
    original = (picture.height, picture.width)
    sizes = wanted.buckets.assign(*original)
    least = wanted.min_size if sizes else max(wanted.min_size, wanted.buckets.step)
    if min(original) < least:
        return Look(f"too small: {picture.width} x {picture.height}, the shorter side must have {least} pixels")
    look = Look("", original, hashlib.sha256(data).hexdigest(), mask is not None, sizes)
    if wanted.keep:
        upright = on_white(picture)
        look.pixels = [kept(covering(upright, size), original, size, wanted.crop) for size in sizes]
    return look


def kept(pixels: Tensor, original: Size, size: Size, crop: str) -> Tensor:
    """What memory holds of a scaled picture: the crop at the centre, or all of it where crops are drawn."""
    return pixels if crop == "random" else crop_to(pixels, centre(original, size), size).clone()


def read_mask(item: Item, picture: Image.Image, alpha_mask: bool) -> Image.Image | None:
    """A picture's mask in 8 bits of grey; None for all of the picture.

    Raises:
        ValueError: the mask has other proportions than the picture.
    """
    if item.mask:
        mask = open_picture(item.mask())
        if not has_proportions(mask, picture):
            sizes = f"{mask.width} x {mask.height} and the picture {picture.width} x {picture.height}"
            raise ValueError(f"the mask has {sizes} pixels; they must have the same proportions")
        return on_white(mask).convert("L")
    if alpha_mask and picture.has_transparency_data:
        return picture.convert("RGBA").getchannel("A")
    return None
