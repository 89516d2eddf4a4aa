"""Pictures and masks as a pipeline takes them: upright, RGB on white, of the size that is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...errors import InputError
from ..request import Recipe
from .files import named_files, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE_FROM = 128  # masks are black or white; from this grey on, a pixel is drawn
GREYS = 0.1  # share of a mask's pixels that may be grey, as edges are, before it is said


def open_upright(flag: str, file: str) -> Image:
    """A picture, turned as its EXIF orientation says, in RGB with white where it was transparent.

    Raises `InputError` if there is no such file or it is no picture.
    """
    from ...training.data.images import UNREADABLE, on_white, open_picture

    try:
        return on_white(open_picture(read_picture(flag, file)))
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{flag} {file} cannot be read as a picture ({error})") from None


def check_pictures(recipe: Recipe) -> None:
    """Raise `InputError` for a picture that cannot be read, or a mask that does not lie on its picture."""
    for control in recipe.controls:
        open_upright("--control", control.picture)
    for region in recipe.regions:
        if region.mask:
            open_upright("--region", region.mask)
    if recipe.image is None:
        return
    picture = open_upright("--image", recipe.image)
    if recipe.mask is not None:
        mask = open_upright("--mask", recipe.mask)
        if mask.size != picture.size:
            sizes = ["x".join(map(str, each.size)) for each in (mask, picture)]
            raise InputError(
                f"--mask {recipe.mask} is {sizes[0]} and --image {recipe.image} {sizes[1]}; draw the mask on it"
            )
        mask_of(mask, mask.size, recipe.mask)


def told_of_pictures(recipe: Recipe) -> Iterator[str]:
    """What is worth saying of the pictures of a recipe whose size is set."""
    for flag, file in named_files(recipe):
        picture = open_upright(flag, file)
        if flag == "--mask" and is_grey(picture):
            yield f"{file} has greys; the lighter half counts as white, which is drawn, and the darker as black."
        elif flag not in ("--mask", "--region") and (said := told_of_fit(file, picture.size, recipe.sides)):
            yield said


def natural_size(picture: tuple[int, int], trained: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size to draw at where none is given: the picture's shape, with about as many pixels as the model's own.

    Args:
        picture, trained: (width, height) of the picture, and of what the model was trained on.
        multiple: what sides must be multiples of.
    """
    scale = math.sqrt(math.prod(trained) / math.prod(picture))
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in picture)
    return width, height


def fitted(picture: Image, size: tuple[int, int]) -> Image:
    """Resize a picture until it covers a size, and cut off evenly what stands out on two sides.

    Args:
        picture: the picture.
        size: (width, height).
    """
    from PIL import Image, ImageOps

    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def told_of_fit(file: str, picture: tuple[int, int], size: tuple[int, int]) -> str:
    """What to say of a picture that is resized or cropped; "" if it fits."""
    if picture == size:
        return ""
    scale = max(size[side] / picture[side] for side in (0, 1))
    covered = [round(side * scale) for side in picture]
    cut = [f"{covered[i] - size[i]} pixels of its {name}" for i, name in ((0, "width"), (1, "height"))]
    cut = [text for i, text in enumerate(cut) if covered[i] > size[i]]
    was, becomes = ("x".join(map(str, each)) for each in (picture, size))
    cropped = f"; {' and '.join(cut)} are cut off" if cut else ""
    return f"{file} is {was} and is resized to {becomes}{cropped}."


def mask_of(picture: Image, size: tuple[int, int], file: str) -> Image:
    """A mask in black and white, 0 or 255.

    Args:
        picture: the mask as drawn.
        size: (width, height) of what is drawn.
        file: for messages.

    Raises:
        InputError: nothing in it is white.
    """
    mask = fitted(picture.convert("L"), size).point([255 * (grey >= WHITE_FROM) for grey in range(256)])
    if mask.getbbox() is None:
        raise InputError(
            f"--mask {file}: nothing in it is white, so nothing would be drawn; white is what is drawn anew"
        )
    return mask


def is_grey(picture: Image) -> bool:
    """Whether much of a mask is neither black nor white."""
    histogram = picture.convert("L").histogram()
    return sum(histogram[16:240]) > GREYS * sum(histogram)
