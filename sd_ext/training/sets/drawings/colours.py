"""A drawing's main colour by its English name, and the same drawing in another colour.

Colours are compared and turned in Oklab (Ottosson 2020, "A perceptual color space for image processing"), where equal
distances look about equally far: L is lightness, (a, b) the colour, its length the chroma and its angle the hue.
"""

from __future__ import annotations

import numpy as np

# Each name with a few colours that people call so; the first is the one things are painted in.
NAMED: dict[str, tuple[str, ...]] = {
    "red": ("#e0262f", "#b3202c", "#f8464a", "#8f1a22"),
    "orange": ("#ff8a1c", "#f26a1b", "#ffa64d"),
    "yellow": ("#ffd12b", "#ffe36e", "#f5c211", "#fff0a0"),
    "green": ("#35a53a", "#1e6e2a", "#7ccf4a", "#00c27a", "#5f8f3a"),
    "blue": ("#2b6fe3", "#1f419c", "#5cb3f2", "#8fd3f7", "#22a8c9"),
    "purple": ("#8a44c8", "#5d2e90", "#b28ae6", "#6a4fc9"),
    "pink": ("#ff74b8", "#ffb0d3", "#e9338d", "#f7a1a8"),
    "brown": ("#8a5933", "#5c3a22", "#b57f4e", "#a0693f"),
    "black": ("#1c1c20", "#34363c", "#000000"),
    "white": ("#fdfdfd", "#eceef0"),
    "grey": ("#8c939b", "#b5bcc4", "#626972"),
}
FADE = np.radians([32.0, 58.0])  # hues this far from the main one are turned wholly, and not at all
GREY = 0.045  # chroma below which a colour has no hue to speak of
MATRIX = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]], np.float32,
)  # fmt: skip
LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]], np.float32,
)  # fmt: skip


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Oklab of sRGB: (..., 3) uint8 to (..., 3) float32."""
    return np.cbrt(_LINEAR[rgb] @ MATRIX.T) @ LAB.T


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """sRGB, cut to its range, of Oklab: (..., 3) to (..., 3) uint8."""
    linear = np.clip((lab @ np.linalg.inv(LAB).T) ** 3 @ np.linalg.inv(MATRIX).T, 0, 1)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * shown).astype(np.uint8)


def rgb_of(code: str) -> np.ndarray:
    """The bytes of "#rrggbb"."""
    return np.frombuffer(bytes.fromhex(code[1:]), np.uint8)


_BYTES = np.arange(256, dtype=np.float32) / 255
_LINEAR = np.where(_BYTES <= 0.04045, _BYTES / 12.92, ((_BYTES + 0.055) / 1.055) ** 2.4).astype(np.float32)
NAMES = tuple(NAMED)
_OWNERS = np.array([number for number, codes in enumerate(NAMED.values()) for _ in codes])
_EXAMPLES = to_lab(np.stack([rgb_of(code) for codes in NAMED.values() for code in codes]))
_CLEARER = np.array([1.0, 2.2, 2.2], np.float32)  # hue and chroma name a colour more than lightness does


def _name_cube() -> np.ndarray:
    """The number in `NAMES` of each colour of 5 bits a channel: (32, 32, 32)."""
    steps = (np.arange(32) * 255 // 31).astype(np.uint8)
    lab = to_lab(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)).reshape(-1, 1, 3)
    return _OWNERS[(((lab - _EXAMPLES) * _CLEARER) ** 2).sum(-1).argmin(1)].reshape(32, 32, 32)


_CUBE = _name_cube()


def names_of(rgb: np.ndarray) -> np.ndarray:
    """The number in `NAMES` of each colour: (..., 3) uint8 to (...)."""
    red, green, blue = np.moveaxis(rgb >> 3, -1, 0)
    return _CUBE[red, green, blue]


def main_colour(drawing: np.ndarray) -> tuple[str, float]:
    """The name of most of a drawing's colour, and its share of all that is drawn.

    Outlines and highlights, that is black and white, count a third where there is anything else.

    Args:
        drawing: (h, w, 4) uint8.
    """
    names = names_of(drawing[..., :3])
    areas = np.bincount(names.ravel(), drawing[..., 3].ravel() / 255.0, len(NAMES))
    counted = areas * np.array([1 / 3 if name in ("black", "white") else 1.0 for name in NAMES])
    best = int(counted.argmax())
    return NAMES[best], float(counted[best] / max(counted.sum(), 1e-6))


def recolour(drawing: np.ndarray, main: str, wanted: str) -> np.ndarray:
    """A drawing whose main colour is another: light stays light, shade stays shade, the rest stays as it is.

    Args:
        drawing: (h, w, 4) uint8.
        main, wanted: names of colours.

    Returns:
        (h, w, 4) uint8.
    """
    lab = to_lab(drawing[..., :3])
    opaque = drawing[..., 3] > 128
    chosen = opaque & (names_of(drawing[..., :3]) == NAMES.index(main))
    if not chosen.any():
        return drawing
    middle = lab[chosen].mean(0)
    chroma, own = np.hypot(lab[..., 1], lab[..., 2]), np.hypot(*middle[1:])
    if own > GREY:
        away = np.abs(
            (np.arctan2(lab[..., 2], lab[..., 1]) - np.arctan2(middle[2], middle[1]) + np.pi) % (2 * np.pi) - np.pi
        )
        share = np.clip((FADE[1] - away) / (FADE[1] - FADE[0]), 0, 1) * np.clip(chroma / GREY - 0.6, 0, 1)
    else:
        share = np.clip(2 - chroma / GREY, 0, 1) * np.clip(2.2 - np.abs(lab[..., 0] - middle[0]) / 0.14, 0, 1)
    target = to_lab(rgb_of(NAMED[wanted][0]))
    lightness = target[0] + 0.85 * (lab[..., 0] - middle[0])
    strength = np.clip(chroma / own, 0.4, 1.3) if own > GREY else np.ones_like(chroma)
    turned = np.stack([lightness, target[1] * strength, target[2] * strength], -1)
    mixed = lab + share[..., None] * (turned - lab)
    return np.concatenate([to_rgb(mixed), drawing[..., 3:]], -1)


def can_become(drawing: np.ndarray, main: str, least: float) -> tuple[str, ...]:
    """The colours that a drawing can be given so that they are then its main colour, by a share of at least `least`."""
    tried = ((name, main_colour(recolour(drawing, main, name))) for name in NAMES if name != main)
    return tuple(name for name, (seen, share) in tried if seen == name and share >= least)
