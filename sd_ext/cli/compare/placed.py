"""What a picture says of where its steps fell."""

from __future__ import annotations

import math
from typing import Any


def sigmas_of(scheduler: Any) -> list[float]:
    """sigma / alpha at the calls that a scheduler has announced, of flow models sigma; none where it does not say."""
    told = getattr(scheduler, "sigmas", None)
    values = [] if told is None else [float(value) for value in told][: len(scheduler.timesteps)]
    return [float(f"{value:.6g}") for value in values if math.isfinite(value) and value > 0]
