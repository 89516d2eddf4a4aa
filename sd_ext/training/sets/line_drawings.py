"""A small picture set in one style, to train a LoRA on: captioned line drawings from the font Symbola.

The font is by George Douros, free for any use. Only characters that are also in the glyph set of Noto Color Emoji are
drawn, so the embedded model, which was trained on that set, knows their captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd_ext.training.sets.folder import write_set
from sd_ext.training.sets.fonts import Font
from sd_ext.training.sets.glyphs import Glyph, glyphs

WIDEN = 64  # lines are widened by 1/64 of the font's size on each side
PICTURES = 0x1F300  # code points from here on are things, plants, animals, people
FONT = Font(
    "Symbola",
    "Symbola",
    "fonts-symbola",
    (
        "/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf",
        "/usr/share/fonts/truetype/ancient-scripts/Symbola.ttf",
        "/usr/share/fonts/gdouros-symbola/Symbola.ttf",
    ),
)


def draw_line(font: ImageFont.FreeTypeFont, character: str, size: int) -> Image.Image | None:
    """Draw a glyph in black on white, with widened lines.

    The font's own lines would be less than two pixels wide at 64 x 64 pixels; the embedded autoencoder reconstructs
    such thin lines with false colours.

    Args:
        font: Symbola.
        character: the character.
        size: height and width of the picture, in pixels.

    Returns:
        A square RGB picture; None if the font has no glyph for the character.
    """
    missing = np.asarray(font.getmask("\U000effff", mode="L"), np.uint8)  # the box that stands for missing glyphs
    drawn = np.asarray(font.getmask(character, mode="L"), np.uint8)
    if drawn.size == 0 or np.array_equal(drawn, missing):
        return None
    stroke = round(font.size / WIDEN)
    left, top, right, bottom = font.getbbox(character, stroke_width=stroke)
    side = int(1.08 * max(right - left, bottom - top))
    canvas = Image.new("L", (side, side), 255)
    corner = ((side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(canvas).text(corner, character, fill=0, font=font, stroke_width=stroke)
    return canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def fine(picture: Image.Image) -> float:
    """The amount of detail in a picture: the mean absolute difference between neighbouring pixels, down plus across."""
    pixels = np.asarray(picture.convert("L"), np.float32)
    return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean())


def drawable(size: int, font_path: str | os.PathLike[str] | None = None) -> list[tuple[Glyph, Image.Image]]:
    """The glyphs of Noto Color Emoji's training split that Symbola has as well, with their line drawings.

    Only the half with the least detail is returned.

    Args:
        size: height and width of the drawings, in pixels.
        font_path: the file of Symbola; None to find it.
    """
    path = str(FONT.find(font_path))
    small, large = ImageFont.truetype(path, 128), ImageFont.truetype(path, 4 * size)
    drawn = ((glyph, draw_line(small, chr(glyph.codepoint), 64)) for glyph in glyphs(size=64))
    found = [(fine(p), g) for g, p in drawn if p and g.split == "train" and g.codepoint >= PICTURES]
    found.sort(key=lambda pair: (pair[0], pair[1].codepoint))
    simple = sorted((glyph for _, glyph in found[: (len(found) + 1) // 2]), key=lambda glyph: glyph.codepoint)
    pictures = ((glyph, draw_line(large, chr(glyph.codepoint), size)) for glyph in simple)
    return [(glyph, picture) for glyph, picture in pictures if picture]


def write_line_drawings(
    folder: str | os.PathLike[str], font_path: str | os.PathLike[str] | None = None, count: int = 60, size: int = 128
) -> int:
    """Write simple line drawings of things as an imagefolder.

    Args:
        folder: the folder to write.
        font_path: the file of Symbola; None to find it.
        count: most drawings; they are chosen evenly from all there are.
        size: height and width, in pixels.

    Returns:
        The number of drawings.

    Raises:
        InputError: a font is not installed, or the folder holds a picture set already.
    """

    def draw() -> Iterator[tuple[Image.Image, dict[str, str]]]:
        pairs = drawable(size, font_path)
        for place in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int):
            glyph, picture = pairs[place]
            yield picture, {"file_name": glyph.file_name, "text": glyph.caption}

    return write_set(folder, draw)
