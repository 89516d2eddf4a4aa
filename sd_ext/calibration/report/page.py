"""The report as an HTML page that stands alone, and as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from ...schedulers.calibrated.card import cell
from ..calibrated import Calibrated
from .facts import HEADS, limits, measured, rows, spent, summary
from .pictures import Sheet

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2em auto; padding: 0 1em; color: #1c1f24; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid #e4e6ea; }
th { border-bottom: 2px solid #c6cad0; font-weight: 600; }
td:nth-child(6), th:nth-child(6), .made td { text-align: left; }
img, svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
@media (max-width: 900px) { .wide img, .wide svg { max-width: none; } }
h2 { margin-top: 2em; }
"""


def title(calibrated: Calibrated) -> str:
    return f"Calibrated samplers for {calibrated.calibration.provenance['model'] or 'a model'}"


def said_of(sheet: Sheet) -> str:
    """What a contact sheet shows."""
    counts = " and ".join(map(str, sheet.calls))
    return (
        f"Guidance {sheet.guidance:g}: the teacher, and with {counts} calls the fitted sampler (fit) and the best "
        "known one (best), from the same noise."
    )


def html(calibrated: Calibrated, drawing: str, sheets: Sequence[Sheet]) -> str:
    """The page.

    Args:
        calibrated: what was found.
        drawing: the plot, as SVG.
        sheets: the contact sheets.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADS)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(calibrated))
    shown = "\n".join(
        f'<p>{escape(said_of(sheet))}</p>\n<div class="wide"><img alt="{escape(", ".join(sheet.prompts))}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(sheet.jpeg).decode()}"></div>'
        for sheet in sheets
    )
    not_helped = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in limits(calibrated))
    made_of = "\n".join(f"<tr><td>{escape(n)}</td><td>{escape(v)}</td></tr>" for n, v in origins(calibrated))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title(calibrated))}</title><style>{STYLE}</style></head><body>
<h1>{escape(title(calibrated))}</h1>
<p>{escape(summary(calibrated))}</p>
<h2>Errors</h2>
<div class="wide">{drawing}</div>
<p>{escape(measured())}</p>
<div class="wide"><table><tr>{head}</tr>
{body}
</table></div>
<h2>Pictures</h2>
{shown}
<h2>Where it does not help</h2>
<ul>
{not_helped}
</ul>
<h2>Cost</h2>
<p>{escape(spent(calibrated))}</p>
<h2>Made of</h2>
<table class="made">
{made_of}
</table>
</body></html>
"""


def markdown(calibrated: Calibrated, plot: str, sheets: Sequence[Sheet]) -> str:
    """The same as Markdown.

    Args:
        calibrated: what was found.
        plot: the file of the plot.
        sheets: the contact sheets; their files lie beside.
    """
    lines = [f"# {cell(title(calibrated))}", "", cell(summary(calibrated)), "", "## Errors", ""]
    lines += [f"![errors and spreads against calls]({plot})", "", measured(), ""]
    lines += [_line(HEADS), _line(["---:"] * len(HEADS)), *map(_line, rows(calibrated)), ""]
    lines += ["## Pictures", ""]
    for sheet in sheets:
        lines += [said_of(sheet), "", f"![{_alternative(sheet)}]({sheet.file})", ""]
    lines += ["## Where it does not help", "", *(f"- {sentence}" for sentence in limits(calibrated)), ""]
    lines += ["## Cost", "", spent(calibrated), "", "## Made of", ""]
    lines += [_line(["", ""]), _line(["---", "---"]), *(_line(pair) for pair in origins(calibrated)), ""]
    return "\n".join(lines)


def origins(calibrated: Calibrated) -> list[tuple[str, str]]:
    """What it was made of: names and values."""
    left_out = ("model_sample",)
    told = calibrated.calibration.provenance.items()
    return [
        (name.replace("_", " "), _value(value)) for name, value in told if name not in left_out and value is not None
    ]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(cell, cells)) + " |"


def _alternative(sheet: Sheet) -> str:
    """A sheet's prompts as the text in an image's brackets."""
    return cell(", ".join(sheet.prompts)).replace("[", "(").replace("]", ")")
