"""Random generators that are seeded by the place in the run where they are used.

The random numbers of step s are a function of the run's seed and s. So checkpoints store no random state, and a
resumed run draws the same numbers as one that was never interrupted.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """Names a use of random numbers, so that different uses draw independent numbers.

    The value is part of the seed: it must never change, or runs could not be reproduced.
    """

    AUTOENCODER = 1  # sampling the posterior while an autoencoder is trained
    SAMPLE = 2  # one sample of a diffusion step: mirroring, caption, crop, posterior, noise
    TIMESTEPS = 3  # the timesteps of a diffusion step
    FLIP = 4  # mirroring, in autoencoder and text encoder training
    DROPOUT = 5  # dropout within the model
    VALIDATION = 7  # the noise of the validation loss
    STRANGERS = 8  # pictures that are not of the data set, in autoencoder training
    GUIDANCE = 9  # the teacher's guidance scale, in consistency distillation
    ROUNDING = 10  # weights in bfloat16 after a step


def stream_generator(seed: int, stream: Stream, *where: int, device: str = "cpu") -> torch.Generator:
    """A generator seeded by the run's seed, the use, and the place in the run.

    Args:
        seed: the run's seed.
        stream: what the numbers are used for.
        where: the place in the run, such as the step and a position in it.
        device: the device of the generator.

    Returns:
        A new generator; equal arguments give equal numbers.
    """
    state = np.random.SeedSequence([seed, stream, *where]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)
