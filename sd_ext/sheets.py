"""Arrange several pictures in one: contact sheets, with or without titles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

GREY, WHITE = (200, 200, 200), (255, 255, 255)
TITLE_HEIGHT, LABEL_HEIGHT, NAME_WIDTH = 16, 16, 44  # pixels


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
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12) if titles else None
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        x, y = gap + column * (width + gap), gap + row * (height + line + gap)
        sheet.paste(picture, (x, y))
        if titles:
            title = " ".join(titles[number].split())
            while pen.textlength(title, font) > width:
                title = title[:-2] + "…"
            pen.text((x, y + height + 1), title, "black", font)
    return sheet


def labelled_sheet(rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """Arrange rows of pictures, with the row's name at the left and a caption above each column.

    Args:
        rows: row name -> one picture for each caption; all pictures have one size.
        captions: the columns' captions.
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
    left, top, font = NAME_WIDTH if any(names) else 0, LABEL_HEIGHT, ImageFont.load_default(11)
    sheet = Image.new("RGB", (grid.width + left, grid.height + top), WHITE)
    sheet.paste(grid, (left, top))
    pen = ImageDraw.Draw(sheet)
    for number, caption in enumerate(captions):
        width = grid.width / len(captions)
        text = caption
        while text and pen.textlength(text, font) > width - 4:
            text = text[:-1]
        pen.text((left + number * width + 2, 1), text, "black", font)
    for number, name in enumerate(names):
        pen.text((2, top + (number + 0.5) * grid.height / len(names) - 6), name, "black", font)
    return sheet
