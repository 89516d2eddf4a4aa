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

from sd_ext.errors import InputError
from sd_ext.training.glyphs import Glyph, glyphs

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
    candidates = [os.fspath(path)] if path is not None else list(KNOWN_PATHS)
    if path is None and shutil.which("fc-match"):
        command = ["fc-match", "--format=%{file}", "Symbola"]
        candidates.insert(0, subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    for candidate in map(Path, candidates):
        if candidate.is_file() and (path is not None or candidate.name.startswith("Symbola")):
            return candidate
    raise InputError("Symbola is not installed: apt install fonts-symbola, or name its file")


def draw_line(font: ImageFont.FreeTypeFont, character: str, size: int) -> Image.Image | None:
    """The glyph in black on white, filling a square picture of `size` pixels; None if the font lacks it."""
    box = font.getbbox(character)
    missing = np.asarray(font.getmask("\U000effff", mode="L"), np.uint8)  # the box for what is not there
    drawn = np.asarray(font.getmask(character, mode="L"), np.uint8)
    if drawn.size == 0 or np.array_equal(drawn, missing):
        return None
    side = int(1.08 * max(box[2] - box[0], box[3] - box[1]))
    canvas = Image.new("L", (side, side), 255)
    corner = ((side - (box[2] - box[0])) / 2 - box[0], (side - (box[3] - box[1])) / 2 - box[1])
    ImageDraw.Draw(canvas).text(corner, character, fill=0, font=font)
    return canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def drawable(size: int, font_path: str | os.PathLike[str] | None = None) -> list[tuple[Glyph, Image.Image]]:
    """Glyphs of the embedded model's set with their line drawings."""
    font = ImageFont.truetype(str(find_symbola(font_path)), 4 * size)
    pairs = ((glyph, draw_line(font, chr(glyph.codepoint), size)) for glyph in glyphs(size=size))
    return [(glyph, picture) for glyph, picture in pairs if picture is not None and glyph.split == "train"]


def write_line_drawings(
    folder: str | os.PathLike[str], font_path: str | os.PathLike[str] | None = None, count: int = 60, size: int = 128
) -> int:
    """Write `count` line drawings, spread over all there are, as an imagefolder. Returns their number.

    `metadata.jsonl` is written last, so a folder that has one is complete.
    """
    folder = Path(folder)
    if (folder / "metadata.jsonl").exists():
        raise InputError(f"{folder} already holds a picture set; remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    pairs = drawable(size, font_path)
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]
    lines = []
    for glyph, picture in chosen:
        picture.save(folder / glyph.file_name)
        lines.append(json.dumps({"file_name": glyph.file_name, "text": glyph.caption}))
    partial = folder / "metadata.jsonl.tmp"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.rename(folder / "metadata.jsonl")
    return len(chosen)
