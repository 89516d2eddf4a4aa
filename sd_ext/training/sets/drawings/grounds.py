"""What is behind the things: plain colours, and sceneries of a few soft shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sd_ext.errors import UnknownNameError
from sd_ext.training.sets.drawings.colours import NAMED, rgb_of, to_lab, to_rgb

Draw = np.random.Generator
PALE = 0.8  # how far a tint is from its colour towards white


def rgb(code: str) -> np.ndarray:
    return rgb_of(code).astype(np.float32)


def blend(top: str, bottom: str, size: int) -> np.ndarray:
    """A vertical passage from one colour to another: (size, size, 3) float32."""
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    return np.broadcast_to(rgb(top) + down * (rgb(bottom) - rgb(top)), (size, size, 3)).copy()


def spot(size: int, x: float, y: float, radius: float, softness: float = 1.0) -> np.ndarray:
    """The opacity of a disc: (size, size, 1). Lengths are shares of the side; its edge is `softness` pixels wide."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    away = np.hypot(at[None, :] - x, at[:, None] - y)
    return np.clip((radius - away) * size / softness + 0.5, 0, 1)[..., None]


def over(picture: np.ndarray, colour: str, opacity: np.ndarray) -> np.ndarray:
    return picture + opacity * (rgb(colour) - picture)


def hills(size: int, height: float, wave: float, draw: Draw) -> np.ndarray:
    """The opacity of what lies below a gently waved line at `height` (0 is the top): (size, size, 1)."""
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    line = height + wave * np.sin(2 * np.pi * (at * draw.uniform(0.7, 1.4) + draw.random()))
    return np.clip((at[:, None] - line[None, :]) * size + 0.5, 0, 1)[..., None]


def clouds(picture: np.ndarray, draw: Draw, highest: float, lowest: float) -> np.ndarray:
    size = len(picture)
    for _ in range(int(draw.integers(2, 4))):
        x, y = draw.uniform(0, 1), draw.uniform(highest, lowest)
        for step in (-0.08, 0.0, 0.08):
            picture = over(picture, "#ffffff", 0.85 * spot(size, x + step, y - 0.02 * (step == 0), 0.07, 2))
    return picture


def night(size: int, draw: Draw) -> np.ndarray:
    picture = blend("#0b1436", "#24356e", size)
    for _ in range(int(draw.integers(10, 22))):
        picture = over(picture, "#fff6d8", spot(size, draw.random(), draw.random(), draw.uniform(0.006, 0.016)))
    return picture


def sky(size: int, draw: Draw) -> np.ndarray:
    return clouds(blend("#5db2f5", "#c4e7fd", size), draw, 0.1, 0.9)


def grass(size: int, draw: Draw) -> np.ndarray:
    picture = clouds(blend("#8fd0fa", "#dcf2fe", size), draw, 0.05, 0.3)
    picture = over(picture, "#7cc553", hills(size, draw.uniform(0.52, 0.64), 0.04, draw))
    return over(picture, "#58aa3c", hills(size, draw.uniform(0.72, 0.84), 0.03, draw))


def sea(size: int, draw: Draw) -> np.ndarray:
    picture = clouds(blend("#9bd7fb", "#e6f6fe", size), draw, 0.05, 0.3)
    for height, colour in ((0.55, "#3f9fe0"), (0.7, "#2f86cc"), (0.84, "#2470b5")):
        picture = over(picture, colour, hills(size, height + draw.uniform(-0.03, 0.03), 0.015, draw))
    return picture


def snow(size: int, draw: Draw) -> np.ndarray:
    picture = over(blend("#8fb4d9", "#cfe0f0", size), "#f7fbff", hills(size, draw.uniform(0.62, 0.75), 0.04, draw))
    for _ in range(int(draw.integers(14, 26))):
        picture = over(picture, "#ffffff", spot(size, draw.random(), draw.random(), draw.uniform(0.01, 0.022)))
    return picture


def desert(size: int, draw: Draw) -> np.ndarray:
    picture = over(blend("#7fc8f2", "#fdf0cf", size), "#f0c877", hills(size, draw.uniform(0.55, 0.65), 0.05, draw))
    return over(picture, "#e2b15c", hills(size, draw.uniform(0.75, 0.85), 0.04, draw))


def sunset(size: int, draw: Draw) -> np.ndarray:
    picture = blend("#5a3f8c", "#ff9d4d", size)
    picture = over(picture, "#ffe08a", spot(size, draw.uniform(0.2, 0.8), draw.uniform(0.55, 0.75), 0.13, 2))
    return over(picture, "#3a2a5c", hills(size, draw.uniform(0.8, 0.88), 0.03, draw))


SCENERIES: dict[str, Callable[[int, Draw], np.ndarray]] = {
    scene.__name__: scene for scene in (night, sky, grass, sea, snow, desert, sunset)
}


def plain(ground: str, colour: str, draw: Draw) -> np.ndarray:
    """One colour (3,), uint8, a little different each time."""
    if ground == "white":
        return rgb_of("#ffffff")
    if ground == "black":
        return rgb_of("#000000")
    lab = to_lab(rgb_of("#20242e" if ground == "dark" else NAMED[colour][0]))
    if ground == "tint":
        lab = lab + PALE * (np.array([0.985, 0, 0]) - lab)
    shift = draw.uniform(-1, 1, 3) * (0.03, 0.012, 0.012)
    return to_rgb(lab + shift)


def paint_ground(ground: str, colour: str, size: int, draw: Draw) -> np.ndarray:
    """A ground: (size, size, 3) uint8.

    Args:
        ground: "white", "black", "dark", "tint", "coloured", or one of `SCENERIES`.
        colour: of "tint" and "coloured".
        size: height and width in pixels.
        draw: what differs each time.
    """
    if ground in SCENERIES:
        return np.round(np.clip(SCENERIES[ground](size, draw), 0, 255)).astype(np.uint8)
    known = ("white", "black", "dark", "tint", "coloured")
    if ground not in known:
        raise UnknownNameError("ground", ground, (*known, *SCENERIES))
    return np.broadcast_to(plain(ground, colour, draw), (size, size, 3)).copy()
