"""A captioned picture set from the glyphs of Noto Color Emoji (Google, SIL Open Font License 1.1).

Every single code point that the font draws in colour becomes one picture with a caption. Left out are glyphs that are
only parts of others (`LEFT_OUT`), and glyphs that look the same as another one at 64 x 64 pixels. Captions are the
Unicode names, simplified to what people would type; `captions.toml` holds corrections, and the captions that are held
out of text-to-image training.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd_ext.errors import InputError
from sd_ext.reading import read_toml
from sd_ext.training.sets.folder import write_set
from sd_ext.training.sets.fonts import Font

STRIKE = 109  # the one pixel size at which the font holds its bitmaps
CELL = 136  # a bitmap is at most this wide and 128 high
FONT = Font(
    "Noto Color Emoji",
    "NotoColorEmoji",
    "fonts-noto-color-emoji",
    (
        "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
        "/usr/share/fonts/noto/NotoColorEmoji.ttf",
        "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    ),
)

# Parts of other glyphs (regional indicators, skin tones, hair), clock faces (24 of them differ by two thin hands only),
# glyphs that show small letters, squares that differ in size only.
LEFT_OUT = re.compile(
    r"REGIONAL INDICATOR|EMOJI MODIFIER|EMOJI COMPONENT|CLOCK FACE|IDEOGRAPH|KATAKANA|COPYRIGHT|REGISTERED|TRADE MARK|"
    r"^(BLACK|WHITE) (SMALL|MEDIUM|MEDIUM SMALL) SQUARE|INPUT SYMBOL|COMPRESSION|SQUARED LATIN|"
    r"^SQUARED|SQUARED AB$|ARROW ABOVE"
)
NEAR = 12.0  # two pictures closer than this (root mean square difference, of 255) count as one

# Words of a Unicode name that nobody types. Applied in turn to the lower-case name.
CLEAN = (
    (r"^(heavy |large |medium |negative squared |squared )+", ""),
    (r"\b(black|white) (?!heart|circle|square|flag|flower|cane)", ""),
    (r" (ornament|symbol|sign)$", ""),
    (r"\bmens\b", "men's"),
    (r"\bwomans\b", "woman's"),
    (r"\bwomens\b", "women's"),
    (r"\bmans\b", "man's"),
    (r"-shaped\b", " shaped"),
    (r"\s+", " "),
)


@dataclass(frozen=True)
class Glyph:
    """One picture of the set.

    Args:
        codepoint: the Unicode code point.
        caption: the caption.
        split: "train" or "held_out".
        picture: RGB, square.
    """

    codepoint: int
    caption: str
    split: str
    picture: Image.Image

    @property
    def file_name(self) -> str:
        """The name of the picture's file in the set."""
        return f"{self.codepoint:x}.png"


def corrections() -> tuple[dict[int, str], frozenset[str]]:
    """Read `captions.toml`; returns (corrected captions by code point, held-out captions)."""
    table = read_toml(Path(__file__).parent / "captions.toml")
    return {int(key, 16): text for key, text in table["captions"].items()}, frozenset(table["held_out"]["captions"])


def clean(name: str) -> str:
    """Make a caption of a Unicode name: `clean("GRINNING FACE") == "grinning face"`."""
    text = name.lower()
    for pattern, replacement in CLEAN:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def draw(font: ImageFont.FreeTypeFont, character: str, size: int) -> Image.Image | None:
    """Draw a glyph on white.

    Args:
        font: Noto Color Emoji, at size `STRIKE`.
        character: the character.
        size: height and width of the picture, in pixels.

    Returns:
        A square RGB picture; None if the font has no glyph for the character.
    """
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("RGBA", (CELL, CELL), (255, 255, 255, 0))
    corner = ((CELL - (right - left)) / 2 - left, (CELL - (bottom - top)) / 2 - top)
    ImageDraw.Draw(canvas).text(corner, character, font=font, embedded_color=True)
    if canvas.getchannel("A").getextrema()[1] == 0:
        return None
    white = Image.new("RGBA", canvas.size, (255, 255, 255, 255))
    white.alpha_composite(canvas)
    return white.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def codepoints() -> Iterator[int]:
    """The code points of symbols (Unicode categories So and Sm) in the blocks that contain emoji."""
    for start, stop in ((0x2000, 0x3000), (0x3200, 0x3300), (0x1F000, 0x1FB00)):
        yield from (c for c in range(start, stop) if unicodedata.category(chr(c)) in ("So", "Sm"))


def glyphs(font_path: str | os.PathLike[str] | None = None, size: int = 128) -> list[Glyph]:
    """All glyphs of the set, in code point order. No two have the same caption, or the same picture at 64 x 64 pixels.

    Args:
        font_path: the file NotoColorEmoji.ttf; None to find it.
        size: height and width of the pictures, in pixels.

    Raises:
        InputError: the font is not installed, or it does not fit `captions.toml`.
    """
    font = ImageFont.truetype(str(FONT.find(font_path)), STRIKE, layout_engine=ImageFont.Layout.BASIC)
    captions, held_out = corrections()
    kept: list[Glyph] = []
    taken: set[str] = set()
    seen: list[np.ndarray] = []
    coarse = np.empty((0, 8 * 8 * 3), np.float32)  # means of 8 x 8 blocks, which never differ by more: a quick test
    for codepoint in codepoints():
        name = unicodedata.name(chr(codepoint), "")
        if not name or LEFT_OUT.search(name):
            continue
        picture = draw(font, chr(codepoint), size)
        if picture is None:
            continue
        pixels = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), np.float32)
        means = pixels.reshape(8, 8, 8, 8, 3).mean((1, 3)).reshape(1, -1)
        if any(distance(seen[i], pixels) < NEAR for i in np.flatnonzero(distance(coarse, means) < NEAR)):
            continue
        caption = captions.get(codepoint) or clean(name)
        if caption in taken:
            raise InputError(f"two glyphs share the caption {caption!r}, one is U+{codepoint:X}: see captions.toml")
        taken.add(caption)
        seen.append(pixels)
        coarse = np.concatenate([coarse, means])
        kept.append(Glyph(codepoint, caption, "held_out" if caption in held_out else "train", picture))
    if missing := held_out - taken:
        raise InputError(f"this font lacks the held-out captions {sorted(missing)}")
    return kept


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The root mean square difference of two pictures; or, if `a` is two-dimensional, of each of its rows and `b`."""
    return np.sqrt(np.mean((a - b) ** 2, axis=1 if a.ndim == 2 else None))


def write_imagefolder(folder: str | os.PathLike[str], font_path: str | os.PathLike[str] | None = None) -> int:
    """Write the set as an imagefolder: PNG files and `metadata.jsonl` (file_name, text, split).

    Args:
        folder: the folder to write.
        font_path: the file NotoColorEmoji.ttf; None to find it.

    Returns:
        The number of pictures.

    Raises:
        InputError: the font is not installed, or the folder holds a picture set already.
    """

    def draw() -> Iterator[tuple[Image.Image, dict[str, str]]]:
        for glyph in glyphs(font_path):
            yield glyph.picture, {"file_name": glyph.file_name, "text": glyph.caption, "split": glyph.split}

    return write_set(folder, draw)
