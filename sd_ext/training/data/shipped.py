"""Sets of captioned pictures that come with this package, to try training with: named in place of a folder.

    sd-ext train lora embedded --data high-contrast --out runs/high-contrast

A set is a folder in `sd_ext/training/shipped`, and its name the folder's.
"""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "shipped"


def shipped_sets() -> dict[str, Path]:
    """The folders of the sets by their names."""
    return {path.name: path for path in sorted(SHIPPED.glob("*")) if path.is_dir()}
