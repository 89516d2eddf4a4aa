"""Paints a scene: things at their places, in their colours, on the ground."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sd_ext.training.sets.drawings.book import Book, Drawing
from sd_ext.training.sets.drawings.colours import NAMED, recolour, rgb_of
from sd_ext.training.sets.drawings.grounds import SCENERIES, paint_ground
from sd_ext.training.sets.drawings.scene import Scene

Draw = np.random.Generator
Box = tuple[float, float, float]  # centre x, centre y, side: shares of the picture's side
SIDES = {"usual": (0.76, 0.96), "small": (0.33, 0.46), "big": (0.97, 1.0)}
STANDING = 0.72  # largest side of a thing in a scenery
JITTER = 0.015  # of things beside one another, which must not touch
PIXELS = 16  # squares along a side of pixel art
SIGNS = "signs"  # the kind of things that must not be mirrored


def _near(draw: Draw, x: float, y: float, side: float, jitter: float) -> Box:
    """A box moved a little, inside the picture."""
    room = max(0.0, (1 - side) / 2)
    x, y = (float(np.clip(v + draw.uniform(-jitter, jitter), 0.5 - room, 0.5 + room)) for v in (x, y))
    return x, y, side


def places(scene: Scene, draw: Draw) -> list[Box]:
    """Where the things are, in the scene's order; several of one thing all."""
    if scene.shows == "two":
        return _two(scene.place, draw)
    if scene.number > 1:
        return _several(scene.number, draw)
    low, high = SIDES["big" if scene.style == "pixels" else scene.size]
    if scene.ground in SCENERIES and scene.size != "small":
        side = draw.uniform(0.5, STANDING)
        return [_near(draw, 0.5, 0.58, side, 0.12)]
    return [_near(draw, 0.5, 0.5, draw.uniform(low, high), 0.5 if scene.size == "small" else 0.06)]


def _two(place: str, draw: Draw) -> list[Box]:
    side, other = draw.uniform(0.4, 0.46, 2)
    if place == "above":
        return [_near(draw, 0.5, 0.25, side, JITTER), _near(draw, 0.5, 0.75, other, JITTER)]
    if place == "beside":
        return [_near(draw, 0.25, 0.5, side, JITTER), _near(draw, 0.75, 0.5, other, JITTER)]
    low = draw.random() < 0.5
    spots = [_near(draw, 0.26, 0.27 + 0.46 * low, side, JITTER), _near(draw, 0.74, 0.73 - 0.46 * low, other, JITTER)]
    return spots if draw.random() < 0.5 else spots[::-1]


def _several(number: int, draw: Draw) -> list[Box]:
    side = draw.uniform(0.37, 0.44)
    if number == 2:
        x = [(0.25, 0.5), (0.75, 0.5)] if draw.random() < 0.75 else [(0.27, 0.3), (0.73, 0.7)]
    elif number == 3 and draw.random() < 0.35:
        x, side = [(0.17, 0.5), (0.5, 0.5), (0.83, 0.5)], draw.uniform(0.26, 0.295)
    elif number == 3:
        x = [(0.5, 0.26), (0.26, 0.74), (0.74, 0.74)]
    else:
        x = [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)]
    return [_near(draw, cx, cy, side, JITTER) for cx, cy in x]


def thing(book: Book, drawing: Drawing, colour: str, style: str, side: int, mirrored: bool) -> Image.Image:
    """A drawing at its size and in its colour, with opacity."""
    whole = Image.fromarray(book.pixels(drawing)).convert("RGBa")
    pixels = np.asarray(whole.resize((side, side), Image.Resampling.LANCZOS).convert("RGBA"))
    if style == "silhouette":
        pixels = np.concatenate([np.broadcast_to(rgb_of(NAMED[colour][0]), (side, side, 3)), pixels[..., 3:]], -1)
    elif colour and colour != drawing.main:
        pixels = recolour(pixels, drawing.main, colour)
    return Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels))


def paint(scene: Scene, book: Book, size: int, draw: Draw) -> Image.Image:
    """The picture of a scene.

    Args:
        scene: what it shows.
        book: the drawings.
        size: height and width in pixels.
        draw: places, sizes and grounds differ each time.

    Returns:
        RGB, `size` x `size`.
    """
    picture = Image.fromarray(paint_ground(scene.ground, scene.ground_colour, size, draw))
    shown = list(range(len(scene.drawings))) * (scene.number if scene.shows == "several" else 1)
    for index, (x, y, side) in zip(shown, places(scene, draw), strict=False):
        drawing, pixels = scene.drawings[index], max(2, round(side * size))
        mirrored = drawing.kind != SIGNS and draw.random() < 0.3
        drawn = thing(book, drawing, scene.colours[index], scene.style, pixels, mirrored)
        picture.paste(drawn, (round(x * size - pixels / 2), round(y * size - pixels / 2)), drawn)
    if scene.style == "pixels":
        small = picture.resize((PIXELS, PIXELS), Image.Resampling.BOX).quantize(24, dither=Image.Dither.NONE)
        picture = small.convert("RGB").resize((size, size), Image.Resampling.NEAREST)
    return picture
