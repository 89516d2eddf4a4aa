"""What an iterator of `sd_ext.ui.work` has made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sd_ext.ui.stream import Progress


def drawn(items: Iterable[Any]) -> list[Any]:
    """Without the progress."""
    return [item for item in items if not isinstance(item, Progress)]
