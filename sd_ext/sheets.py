"""Arrange several pictures in one: contact sheets, with or without titles."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
GREY, WHITE = (200, 200, 200), (255, 255, 255)
TITLE_HEIGHT, LABEL_LINE, LABEL_LINES, MARGIN = 16, 14, 3, 4  # pixels; at most so many lines; pixels


def contact_sheet(
    pictures: Sequence[Image.Image],
    columns: int,
    titles: Sequence[str] = (),
    gap: int = 2,
    ground: tuple[int, int, int] = GREY,
) -> Image.Image:
    """Arrange pictures in a grid, row by row.

    Args:
        pictures: the pictures; they may differ in size, each cell has room for the widest and the highest.
        columns: how many columns the grid has.
        titles: one for each picture, written below it and cut to its width; empty for no titles.
        gap: pixels between neighbouring pictures, and around the whole grid.
        ground: background colour (RGB, 0 to 255).

    Returns:
        The sheet, in RGB.
    """
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    line = TITLE_HEIGHT if titles else 0
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (width + gap) + gap, rows * (height + line + gap) + gap)
    sheet = Image.new("RGB", size, ground)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), gap + row * (height + line + gap)
        sheet.paste(picture, (x, y))
        if titles:
            pen.text((x, y + height + 1), _cut(" ".join(titles[number].split()), font, width), "black", font)
    return sheet


def labelled_sheet(rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Arrange rows of pictures, with the row's name at the left and a caption above each column.

    Args:
        rows: row name -> one picture for each caption; all pictures have one size.
        captions: the columns' captions, in up to three lines; what does not fit ends in "…".
        columns: at most so many columns side by side; further captions continue in a strip below.

    Returns:
        The sheet, in RGB.
    """
    strips = []
    for start in range(0, len(captions), columns):
        shown = captions[start : start + columns]
        pictures = [picture for row in rows.values() for picture in row[start : start + columns]]
        strips.append(_with_labels(contact_sheet(pictures, len(shown)), shown, list(rows)))
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), WHITE)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _with_labels(grid: Image.Image, captions: Sequence[str], names: Sequence[str]) -> Image.Image:
    """Add captions above the columns of `grid`, and names at the left of its rows."""
    font, width = ImageFont.load_default(11), grid.width / len(captions)
    lines = [_wrapped(caption, font, width - MARGIN) for caption in captions]
    left = math.ceil(max(map(font.getlength, names), default=0.0))
    left, top = (left + 2 * MARGIN if left else 0), max(map(len, lines)) * LABEL_LINE + 2
    sheet = Image.new("RGB", (grid.width + left, grid.height + top), WHITE)
    sheet.paste(grid, (left, top))
    pen = ImageDraw.Draw(sheet)
    for number, caption in enumerate(lines):
        first = top - 2 - len(caption) * LABEL_LINE  # the last line stands above the picture
        for row, line in enumerate(caption):
            pen.text((left + number * width + 2, first + row * LABEL_LINE), line, "black", font)
    for number, name in enumerate(names):
        pen.text((MARGIN, top + (number + 0.5) * grid.height / len(names) - 6), name, "black", font)
    return sheet


def _wrapped(text: str, font: Font, room: float) -> list[str]:
    """A text in at most `LABEL_LINES` lines that fit into `room` pixels; the last ends in "…" where it goes on."""
    lines, words = [""], text.split()
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= room:
            lines[-1] = longer
        elif len(lines) < LABEL_LINES:
            lines.append(word)
        else:
            lines[-1] = " ".join([lines[-1], *words[number:]])
            break
    return [_cut(line, font, room) for line in lines]


def _cut(line: str, font: Font, room: float) -> str:
    """A line that fits into `room` pixels, shortened by "…" if it must be."""
    start = line[: max(1, int(room))]  # a letter is wider than a pixel
    if start == line and font.getlength(line) <= room:
        return line
    fitting = bisect_right(range(len(start) + 1), room, key=lambda n: font.getlength(f"{start[:n]}…"))
    return f"{start[: max(0, fitting - 1)].rstrip()}…"
