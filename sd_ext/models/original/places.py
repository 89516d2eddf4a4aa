"""Where in a file in the original layout each tensor of a part is, and where it goes when such a file is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .families import Family
from .renames import Renames
from .shapes import Shapes
from .text_names import PIECES, PROJECTION, clip_names, joined, open_clip_names, pieces
from .unet_names import unet_names
from .vae_names import POINTWISE, vae_names


class Place(NamedTuple):
    """Where a tensor is in a file.

    Args:
        key: the name in the file, after the part's beginning.
        piece: which third of the file's tensor it is, counted along its first dimension; None if it is all of it.
        turned: whether the file has it transposed.
        pointwise: whether the file has it as a 1 x 1 convolution, with two more dimensions of one element each.
    """

    key: str
    piece: int | None = None
    turned: bool = False
    pointwise: bool = False


def renaming(family: Family, part: str, config: Mapping[str, Any]) -> Renames:
    """The names of a part's modules in both layouts, for its config."""
    if part == "unet":
        return Renames(unet_names(config))
    if part == "vae":
        return Renames(vae_names(config))
    return Renames(clip_names() if family.text[part].style == "clip" else open_clip_names(config))


def find_places(family: Family, part: str, config: Mapping[str, Any], shapes: Shapes) -> dict[str, Place]:
    """Where each tensor of a part is in a file.

    Args:
        family: the file's family.
        part: the part.
        config: its config.
        shapes: its tensors, their names without the part's beginning.

    Returns:
        Diffusers' name of each tensor, with `text_model.` for text encoders -> its place. Tensors of the file that
        belong to no module of the part are left out.
    """
    names, open_clip = renaming(family, part, config), part in family.text and family.text[part].style == "open_clip"
    found: dict[str, Place] = {}
    for key, shape in shapes.items():
        cut = pieces(key) if open_clip else [key]
        for number, piece in enumerate(cut):
            name = names.ours(piece)
            if name is None or name.endswith("position_ids") or (part == "text_encoder" and PROJECTION in name):
                continue
            pointwise = part == "vae" and key in POINTWISE and len(shape) == 4
            turned = open_clip and key == PROJECTION
            found[name] = Place(key, number if len(cut) > 1 else None, turned, pointwise)
    return found


def place_of(family: Family, part: str, names: Renames, name: str) -> Place | None:
    """Where a tensor of a part goes in a file that is written.

    Args:
        family: the file's family.
        part: the part.
        names: see `renaming`.
        name: Diffusers' name, with `text_model.` for text encoders.

    Returns:
        The place; None if the layout has none for it.
    """
    key = names.original(name)
    if key is None:
        return None
    if part in family.text and family.text[part].style == "open_clip":
        whole, number = joined(key)
        turned = name == f"{PROJECTION}.weight"
        return Place(PROJECTION if turned else whole, number if whole != key else None, turned)
    return Place(key, pointwise=part == "vae" and key in POINTWISE)


def shape_of(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in Diffusers' layout of a tensor whose place in the file has the shape `shape`."""
    if place.piece is not None:
        return (shape[0] // len(PIECES), *shape[1:])
    return shape[::-1] if place.turned else shape[:2] if place.pointwise else shape


def original_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The reverse of `shape_of`."""
    if place.piece is not None:
        return (shape[0] * len(PIECES), *shape[1:])
    return shape[::-1] if place.turned else (*shape[:2], 1, 1) if place.pointwise else shape
