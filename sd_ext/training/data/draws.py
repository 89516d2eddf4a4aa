"""Random numbers that depend on where in a run they are drawn, and on nothing else."""

from __future__ import annotations

import numpy as np
import torch


def random(seed: int, *where: int, device: str = "cpu") -> torch.Generator:
    """A generator that depends on (seed, *where) only: the same draws whether a run was interrupted or not."""
    state = np.random.SeedSequence([seed, *where]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> 1))
