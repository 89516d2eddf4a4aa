"""A small style to train a LoRA on: line drawings of the font Symbola (George Douros, free for any use), with captions.

The glyphs are those of characters that Noto Color Emoji has in colour too, so the embedded model knows their names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.training.sets.glyphs import Glyph, glyphs

WIDEN = 64  # lines grow by this part of the font's size to each side
PICTURES = 0x1F300  # code points from here on are things, plants, animals, people
KNOWN_PATHS = (
    "/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf",
    "/usr/share/fonts/truetype/ancient-scripts/Symbola.ttf",
    "/usr/share/fonts/gdouros-symbola/Symbola.ttf",
)


def find_symbola(path: str | os.PathLike[str] | None = None) -> Path:
    """The path of Symbola: the one given, or where fontconfig or the usual places have it.

    Raises:
        InputError: no such font; names the package to install.
    """
    candidates: list[str] = [os.fspath(path)] if path is not None else list(KNOWN_PATHS)
    if path is None and shutil.which("fc-match"):
        command = ["fc-match", "--format=%{file}", "Symbola"]
        candidates.insert(0, subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    for candidate in map(Path, candidates):
        if candidate.is_file() and (path is not None or candidate.name.startswith("Symbola")):
            return candidate
    raise InputError("Symbola is not installed: apt install fonts-symbola, or name its file")


def draw_line(font: ImageFont.FreeTypeFont, character: str, size: int) -> Image.Image | None:
    """The glyph in black on white, its lines widened, filling a square picture of `size` pixels; None if it is missing.

    Lines as thin as the font's are less than two of 64 pixels wide, which the embedded autoencoder draws in colours.
    """
    missing = np.asarray(font.getmask("\U000effff", mode="L"), np.uint8)  # the box for what is not there
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
    """How much line there is in a picture: the mean step from pixel to pixel."""
    pixels = np.asarray(picture.convert("L"), np.float32)
    return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean())


def drawable(size: int, font_path: str | os.PathLike[str] | None = None) -> list[tuple[Glyph, Image.Image]]:
    """Glyphs of the embedded model's set that the font has as well, the simpler half, with their drawings."""
    path = str(find_symbola(font_path))
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
    """Write `count` simple line drawings of things, spread over all there are, as an imagefolder. Returns their number.

    `metadata.jsonl` is written last, so a folder that has one is complete.
    """
    folder = Path(folder)
    if (folder / "metadata.jsonl").exists():
        raise InputError(f"{folder} already holds a picture set; remove it or choose another folder")
    pairs = drawable(size, font_path)
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]
    lines = []
    for glyph, picture in chosen:
        with whole.file(folder / glyph.file_name) as new:
            picture.save(new)
        lines.append(json.dumps({"file_name": glyph.file_name, "text": glyph.caption}))
    whole.write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    return len(chosen)
