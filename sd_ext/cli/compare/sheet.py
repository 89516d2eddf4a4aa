"""A page of a comparison as one picture: headings, pictures with margins, time and distance under each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .told import MADE_BY, Comparison, distance_of, headed, lines_of, time_of

if TYPE_CHECKING:
    from PIL.Image import Image

INK, SOFT, GROUND, PAPER = "#15181d", "#5d6673", "#ffffff", "#f2f4f7"
BAR, BEST = "#8fa3bf", "#0072b2"
SMALLEST, LARGEST = 160, 512  # pixels of a picture's longer side on the sheet
MOST_PIXELS, MOST_SIDE = 120e6, 30_000  # of a sheet; pictures of larger ones are made smaller
MANY_ROWS, MANY_COLUMNS = 6, 8  # from which on headings are repeated at the other end


def shown_size(sizes: Sequence[tuple[int, int]], rows: int, columns: int) -> tuple[int, int]:
    """The width and height at which pictures are shown: small ones are enlarged by a whole number.

    Args:
        sizes: (width, height) of the pictures.
        rows, columns: how many there are.
    """
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    side = max(width, height)
    scale = math.ceil(SMALLEST / side) if side < SMALLEST else min(1.0, LARGEST / side)
    most = math.sqrt(MOST_PIXELS / (rows * columns * width * height))
    scale = min(scale, most, MOST_SIDE / (columns * width * 1.1), MOST_SIDE / (rows * height * 1.3))
    return max(8, round(width * scale)), max(8, round(height * scale))


def sheet(comparison: Comparison, page: int, pictures: dict[Any, Image]) -> Image:
    """Draw a page.

    Args:
        comparison: what is shown.
        page: which page, from 0.
        pictures: (page, row, column) -> the picture there, where it could be drawn.
    """
    from PIL import Image, ImageDraw

    _, rows, columns = comparison.grid.shape
    sizes = [picture.size for picture in pictures.values()]
    size = shown_size(sizes, rows, columns)
    layout = _Layout(comparison, page, size, rows, columns)
    made = Image.new("RGB", (layout.width, layout.height), GROUND)
    pen = ImageDraw.Draw(made)
    layout.headings(pen)
    for row in range(rows):
        best = {column: comparison.best(page, column) for column in range(columns)}
        for column in range(columns):
            x, y = layout.corner(row, column)
            pen.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=PAPER)
            picture = pictures.get((page, row, column))
            if picture is not None:
                fitted = fit(picture, size)
                made.paste(fitted, (x + (size[0] - fitted.width) // 2, y + (size[1] - fitted.height) // 2))
            layout.under(pen, row, column, best[column] == row)
    return made


def fit(picture: Image, size: tuple[int, int]) -> Image:
    """A picture scaled into a size. Small ones that grow by a whole number keep their pixels."""
    from PIL import Image

    scale = min(size[0] / picture.width, size[1] / picture.height)
    new = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    exact = scale >= 1 and float(scale).is_integer()
    return picture.resize(new, Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)


class _Layout:
    """Where things stand on a sheet, and its words."""

    def __init__(self, comparison: Comparison, page: int, size: tuple[int, int], rows: int, columns: int):
        from PIL import ImageFont

        self.comparison, self.page, self.size, self.rows, self.columns = comparison, page, size, rows, columns
        grid, side = comparison.grid, min(size)
        head = min(max(round(side * 0.1), 13), 34)
        self.fonts: dict[str, Any] = {
            "title": ImageFont.load_default(round(head * 1.5)),
            "head": ImageFont.load_default(head),
            "small": ImageFont.load_default(max(round(head * 0.72), 10)),
        }
        self.gap, self.edge = max(round(side * 0.07), 8), max(round(side * 0.14), 16)
        self.lines = {
            "rows": [self._wrapped(headed(grid.rows, n), "head", size[0]) for n in range(rows)],
            "columns": [self._wrapped(headed(grid.columns, n), "head", size[0]) for n in range(columns)],
        }
        widest = max((self._width(line, "head") for lines in self.lines["rows"] for line in lines), default=0)
        self.left = self.edge + (widest + self.gap * 2 if grid.rows.varies else 0)
        self.repeat = rows > MANY_ROWS, columns > MANY_COLUMNS
        inner = columns * (size[0] + self.gap) - self.gap
        self.right = self.left + inner
        self.width = max(self.right + (widest + self.gap * 2 if self.repeat[1] else 0) + self.edge, 480)
        room = self.width - 2 * self.edge
        self.title = self._wrapped(comparison.title, "title", room)
        self.shared = self._wrapped(lines_of(comparison.shared(page)), "small", room)
        self.foot = [*self._wrapped(comparison.explained, "small", room), MADE_BY]
        self.line = {name: round(font.size * 1.35) for name, font in self.fonts.items()}
        high = max(map(len, self.lines["columns"])) * self.line["head"] if grid.columns.varies else 0
        self.head_height = high + self.gap if high else 0
        self.under_height = round(self.line["small"] * 1.5) + self.gap
        self.top = (
            self.edge + len(self.title) * self.line["title"] + len(self.shared) * self.line["small"] + self.gap * 2
        )
        self.first = self.top + self.head_height
        self.bottom = self.first + rows * (size[1] + self.under_height)
        end = self.bottom + (self.head_height if self.repeat[0] else 0)
        self.foot_top = end + self.gap
        self.height = self.foot_top + len(self.foot) * self.line["small"] + self.edge

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The upper left pixel of a picture."""
        return self.left + column * (self.size[0] + self.gap), self.first + row * (self.size[1] + self.under_height)

    def headings(self, pen: Any) -> None:
        """Write all that stands around the pictures."""
        y = self.edge
        for line in self.title:
            pen.text((self.edge, y), line, INK, self.fonts["title"])
            y += self.line["title"]
        for line in self.shared:
            pen.text((self.edge, y + self.gap // 2), line, SOFT, self.fonts["small"])
            y += self.line["small"]
        if self.comparison.grid.columns.varies:
            for top in [self.top, *([self.bottom] if self.repeat[0] else [])]:
                self._columns(pen, top)
        if self.comparison.grid.rows.varies:
            for row in range(self.rows):
                self._row(pen, row)
        for number, line in enumerate(self.foot):
            pen.text((self.edge, self.foot_top + number * self.line["small"]), line, SOFT, self.fonts["small"])

    def _columns(self, pen: Any, top: int) -> None:
        for column, lines in enumerate(self.lines["columns"]):
            middle = self.corner(0, column)[0] + self.size[0] // 2
            space = max(map(len, self.lines["columns"])) - len(lines)
            for number, line in enumerate(lines):
                y = top + (space + number) * self.line["head"]
                pen.text((middle, y), line, INK, self.fonts["head"], anchor="ma")

    def _row(self, pen: Any, row: int) -> None:
        lines, middle = self.lines["rows"][row], self.corner(row, 0)[1] + self.size[1] // 2
        y = middle - len(lines) * self.line["head"] // 2
        for number, line in enumerate(lines):
            at = y + number * self.line["head"]
            pen.text((self.left - self.gap, at), line, INK, self.fonts["head"], anchor="ra")
            if self.repeat[1]:
                pen.text((self.right + self.gap, at), line, INK, self.fonts["head"])

    def under(self, pen: Any, row: int, column: int, best: bool) -> None:
        """Write time and distance under a picture, with a bar as long as the distance."""
        cell = self.comparison.cells[self.page, row, column]
        (x, y), (width, height) = self.corner(row, column), self.size
        if cell.path is None:
            for number, line in enumerate(
                self._wrapped(cell.refused, "small", width - 8)[: height // self.line["small"]]
            ):
                pen.text((x + 4, y + 4 + number * self.line["small"]), line, SOFT, self.fonts["small"])
            return
        y += height
        thick = max(3, self.gap // 4)
        if cell.distance is not None and self.comparison.farthest:
            long = round(width * min(1.0, cell.distance / self.comparison.farthest))
            pen.rectangle((x, y + 2, x + max(long, 1), y + 1 + thick), fill=BEST if best else BAR)
        y += thick + 4
        time, apart = time_of(cell), distance_of(cell)
        pen.text((x, y), time, SOFT, self.fonts["small"])
        if self._width(f"{time}  {apart}", "small") <= width or not time:
            colour = SOFT if cell.distance is None else BEST if best else INK
            pen.text((x + width, y), apart, colour, self.fonts["small"], anchor="ra")

    def _width(self, text: str, font: str) -> int:
        return math.ceil(self.fonts[font].getlength(text))

    def _wrapped(self, text: str, font: str, room: int) -> list[str]:
        """A text in lines that fit; a word that is too long is cut."""
        lines: list[str] = []
        for word in text.split(" "):
            while self._width(word, font) > room and len(word) > 2:
                word = word[:-2] + "…"
            if lines and self._width(f"{lines[-1]} {word}", font) <= room:
                lines[-1] += f" {word}"
            elif word or not lines:
                lines.append(word)
        return lines if text else []
