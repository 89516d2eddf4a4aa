"""The report of a calibration: one HTML page that stands alone, and a Markdown file with its pictures beside it.

plot      errors and spreads against calls, as SVG     facts   what is told, in words
pictures  contact sheets, drawn by the pipeline        page    HTML and Markdown
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ... import whole
from ..calibrated import Calibrated
from ..problem import OnCalls
from .page import html, markdown
from .pictures import sheets
from .plot import plot

PLOT, PAGE, TEXT = "errors.svg", "report.html", "report.md"


def write_report(calibrated: Calibrated, pipe: Any, folder: Path, on_calls: OnCalls = lambda calls: None) -> None:
    """Draw the contact sheets and write `report.html`, `report.md` and the pictures of the latter.

    Args:
        calibrated: what was found.
        pipe: the pipeline that it was found for; its scheduler is what it was afterwards.
        folder: where to.
        on_calls: told of predictions, for a progress bar.
    """
    drawing, drawn = plot(calibrated), sheets(pipe, calibrated, on_calls)
    for sheet in drawn:
        whole.write_bytes(folder / sheet.file, sheet.jpeg)
    whole.write_text(folder / PLOT, drawing)
    whole.write_text(folder / PAGE, html(calibrated, drawing, drawn))
    whole.write_text(folder / TEXT, markdown(calibrated, PLOT, drawn))
