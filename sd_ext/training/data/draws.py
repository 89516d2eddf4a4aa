"""Random numbers that depend on where in a run they are drawn, and on nothing else.

So no random state has to be kept: a run that was interrupted draws what it would have drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random numbers are for. Draws of different streams are independent; a number once given is never changed,
    since a run's results depend on it."""

    AUTOENCODER = 1  # the posterior's sample while an autoencoder is trained
    SAMPLE = 2  # all that is drawn for a sample of a diffusion step: mirroring, caption, crop, latent, noise
    TIMESTEPS = 3  # of a diffusion step
    FLIP = 4  # mirroring, where nothing else is drawn for a sample
    DROPOUT = 5  # within the model
    VALIDATION = 7  # the noise that held-out pictures are measured with


def stream_generator(seed: int, stream: Stream, *where: int, device: str = "cpu") -> torch.Generator:
    """A generator for one place of a run.

    Args:
        seed: of the run.
        stream: what is drawn.
        where: the place, such as a step and a position in it. Equal arguments give equal draws.
        device: of the generator.
    """
    state = np.random.SeedSequence([seed, stream, *where]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)
