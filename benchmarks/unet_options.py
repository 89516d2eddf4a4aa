"""Writes the tables of docs/unets.md from what is declared of every option of a U-Net.

    python benchmarks/unet_options.py

A table stands between `<!-- options: NAME, NAME -->`, which names features, and `<!-- /options -->`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sd_ext.unets.variant import FEATURES  # noqa: E402

PAGE = ROOT / "docs" / "unets.md"
TABLE = re.compile(r"(<!-- options: (.*?) -->\n).*?(<!-- /options -->)", re.DOTALL)
BY_NAME = {feature.name: feature for feature in FEATURES}


def table(names: str) -> str:
    """The options of some features, as Markdown.

    Args:
        names: of the features, with commas.
    """
    lines = ["| option | neutral | |", "|---|---|---|"]
    for name in names.split(", "):
        for option, declared in BY_NAME[name].options.items():
            lines.append(f"| `{option}` | `{json.dumps(declared.neutral)}` | {declared.help} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables made anew."""
    return TABLE.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", text)


def unnamed(text: str) -> list[str]:
    """The features that no table of the page has."""
    named = [name for names in TABLE.findall(text) for name in names[1].split(", ")]
    return [name for name in BY_NAME if named.count(name) != 1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
