"""A comparison as one HTML page that stands alone: pictures, style and script are in it, and it loads nothing."""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ...plain_files import read_text
from .cells import open_cell
from .levels import levels
from .plot import plot
from .told import MADE_BY, Comparison, Place, distance_of, headed, time_of

if TYPE_CHECKING:
    from PIL.Image import Image

TEMPLATE = Path(__file__).parent / "page.html"
SMALL = 256  # pixels up to which pictures are stored to the bit and shown as they are when enlarged
SIDES = ((64, 1024), (256, 512), (20_000, 192))  # of so many pictures at most, the longer side in the page


def page(
    comparison: Comparison, pictures: Mapping[Place, Image], references: Mapping[Path, Image], folder: Path
) -> str:
    """The page.

    Args:
        comparison: what is shown.
        pictures: (page, row, column) -> the picture there, where it could be drawn.
        references: file -> picture of many calls.
        folder: where the page will lie, for the names of files.
    """
    side = next(side for most, side in SIDES if len(pictures) <= most)
    made = _Made(comparison, pictures, side, {path: f"r{n}" for n, path in enumerate(references)}, folder)
    pages, _, columns = comparison.grid.shape
    values = {
        "title": escape(comparison.title),
        "shared": "  ·  ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in comparison.shared()),
        "cell": str(min(max(1500 // (columns + 1), 96), 320)),
        "tabs": "".join(
            f"<button>{escape(headed(comparison.grid.pages, n))}</button>" for n in range(pages) if pages > 1
        ),
        "pages": "\n".join(made.section(n) for n in range(pages)),
        "plot": plot(comparison) + levels(comparison),
        "explained": escape(comparison.explained),
        "kept": escape(made.kept()),
        "reference": f"{comparison.calls} calls",
        "references": "".join(made.image(picture, made.ids[path], "") for path, picture in references.items()),
        "made_by": escape(MADE_BY),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], read_text(TEMPLATE))


class _Made:
    """Parts of the page."""

    def __init__(
        self,
        comparison: Comparison,
        pictures: Mapping[Place, Image],
        side: int,
        ids: Mapping[Path, str],
        folder: Path,
    ):
        self.comparison, self.pictures, self.side, self.ids, self.folder = comparison, pictures, side, ids, folder

    def kept(self) -> str:
        """How pictures are kept in the page."""
        longest = max(max(picture.size) for picture in self.pictures.values())
        smaller = f", at most {self.side} pixels wide and high here" if longest > self.side else ""
        return f"The pictures lie beside this page as files that say how they were made{smaller}."

    def section(self, number: int) -> str:
        """The table of one page."""
        grid = self.comparison.grid
        _, rows, columns = grid.shape
        head = "".join(f'<th scope="col">{escape(headed(grid.columns, n))}</th>' for n in range(columns))
        side = grid.rows.varies
        top = f"<thead><tr>{'<th></th>' if side else ''}{head}</tr></thead>" if grid.columns.varies else ""
        best = [self.comparison.best(number, column) for column in range(columns)]
        body = "\n".join(
            "<tr>"
            + (f'<th scope="row">{escape(headed(grid.rows, row))}</th>' if side else "")
            + "".join(self.cell((number, row, column), best[column] == row) for column in range(columns))
            + "</tr>"
            for row in range(rows)
        )
        return f"<section><table>{top}<tbody>\n{body}\n</tbody></table></section>"

    def cell(self, place: Place, best: bool) -> str:
        """One picture with what stands under it."""
        cell, grid = self.comparison.cells[place], self.comparison.grid
        if cell.path is None:
            return f'<td><div class="refused">{escape(cell.refused)}</div></td>'
        axes = zip((grid.pages, grid.rows, grid.columns), place, strict=True)
        name = " · ".join(headed(axis, number) for axis, number in axes if axis.varies)
        time, apart = time_of(cell), distance_of(cell)
        command = f"sd-ext generate --again {shlex.quote(cell.path.relative_to(self.folder).as_posix())}"
        told = {
            "name": name,
            "id": f"p{'-'.join(map(str, place))}",
            "told": " · ".join(filter(None, (time, apart))),
            "command": command,
            "reference": self.ids.get(cell.reference, "") if cell.reference else "",
        }
        data = " ".join(f'data-{key}="{escape(value)}"' for key, value in told.items())
        share = 100 * cell.distance / self.comparison.farthest if cell.distance and self.comparison.farthest else None
        bar = f'<div class="measure"><i style="width:{share:.1f}%"></i></div>' if share is not None else ""
        kind = "apart" if cell.distance is not None else "why"
        note = f'<div class="note"><span>{escape(time)}</span><span class="{kind}">{escape(apart)}</span></div>'
        shown = self.image(self.pictures[place], told["id"], name)
        way = ""
        if cell.strip is not None:
            way = self.image(open_cell(cell.strip), f"s{told['id']}", f"how it came about: {name}")
            way = f'<div class="strip">{way}</div>'
        return f'<td{" class=best" if best else ""}><button class="shot" {data}>{shown}</button>{way}{bar}{note}</td>'

    def image(self, picture: Image, name: str, alt: str) -> str:
        """An `img` that holds its picture: to the bit if it is small, else about."""
        file, shown = io.BytesIO(), picture
        small = max(picture.size) <= SMALL
        if max(picture.size) > self.side:
            shown = picture.copy()
            shown.thumbnail((self.side, self.side))
        shown.save(file, "PNG" if small else "WEBP", quality=92)
        kind, data = "png" if small else "webp", base64.b64encode(file.getvalue()).decode()
        sides = f'width="{shown.width}" height="{shown.height}"'
        look = ' class="small"' if small else ""
        return f'<img id="{name}" alt="{escape(alt)}"{look} {sides} src="data:image/{kind};base64,{data}">'
