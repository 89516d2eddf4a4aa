"""Noise from a Brownian path: one seed is one picture, whatever the number of steps.

Drawn afresh for every step, noise makes another picture of every step count. Here each sample has one Brownian path W,
and the noise of a step is W's increment over it. The reverse-time SDE reads, with lambda = log(alpha / sigma),

    x_t = sigma_t / sigma_s e^-(lambda_t - lambda_s) x_s + ... + sigma_t e^-lambda_t int_s^t sqrt(2) e^lambda dW_lambda

(Lu et al. 2022, arXiv 2211.01095, appendix A), whose stochastic integral is a Brownian motion in the time
tau = e^(2 lambda), the signal-to-noise ratio: increments in tau are the noise of the exact solution. k-diffusion's
Brownian tree takes increments in sigma instead.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .schedule import Levels

OCTAVES = (-40, 40)
"""tau is cut to 2^-40 ... 2^40; each octave is a Brownian interval of its own, so that all are resolved alike."""
TICKS = 2**13
"""Times are rounded to so many ticks an octave (0.00004 in lambda): the path is the same however it is asked."""


def seeds_of(generator: torch.Generator | Sequence[torch.Generator] | None, batch: int) -> list[int]:
    """One seed per sample, drawn from its generator, or all from the one there is."""
    sources = [generator] if generator is None or isinstance(generator, torch.Generator) else list(generator)
    sources = sources if len(sources) == batch else sources[:1] * batch
    return [int(torch.randint(2**31, (1,), generator=g, device=g.device if g else "cpu")) for g in sources]


class BrownianPath:
    """W(tau), tau > 0, of one sample.

    Args:
        shape: of the sample, without the batch.
        seed: everything about the path.

    Raises:
        InputError: torchsde is not installed.
    """

    def __init__(self, shape: Sequence[int], seed: int):
        try:
            self._library: Any = importlib.import_module("torchsde")
        except ImportError as error:
            raise InputError("noise_type='brownian' needs torchsde: pip install 'sd_ext[brownian]'") from error
        self.shape, self.seed = tuple(shape), seed
        self._octaves: dict[int, Any] = {}

    def _octave(self, k: int) -> Any:
        if k not in self._octaves:
            self._octaves[k] = self._library.BrownianInterval(
                t0=0.0,
                t1=float(TICKS),
                size=self.shape,
                dtype=torch.float32,
                entropy=self.seed * 128 + k + 64,
                tol=0.1,
                halfway_tree=True,
            )
        return self._octaves[k]

    def increment(self, start: float, end: float) -> torch.Tensor:
        """W(end) - W(start) for start < end, scaled to N(0, I), on the CPU in float32. They must be a tick apart."""
        start, end = (min(max(tau, 2.0 ** OCTAVES[0]), 2.0 ** OCTAVES[1]) for tau in (start, end))
        total, length, k = torch.zeros(self.shape), 0.0, math.floor(math.log2(start))
        while 2.0**k < end:
            a, b = (round(TICKS * min(max(tau / 2.0**k - 1, 0.0), 1.0)) for tau in (start, end))
            if b > a:
                tick = 2.0**k / TICKS
                total += self._octave(k)(float(a), float(b)) * tick**0.5
                length += (b - a) * tick
            k += 1
        return total / length**0.5

    def apart(self, call: int) -> torch.Tensor:
        """N(0, I) that is no increment of the path, for a call that adds noise back."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed + (call + 1) * 2**32))


class BrownianNoise:
    """The noise of one run's calls from one path per sample.

    Args:
        levels: of the run's calls and end.
        shape: of the latent, `(batch, ...)`.
        generator: one, or one per sample.
    """

    def __init__(self, levels: Levels, shape: Sequence[int], generator: Any):
        self.tau = [float(tau) for tau in np.exp(2 * np.minimum(levels.lam, 100.0))]
        self.paths = [BrownianPath(shape[1:], seed) for seed in seeds_of(generator, shape[0])]
        self.used = 0
        """Level up to which the path has been used."""
        self.begins: dict[int, int] = {}
        """For each call that drew noise, the level from which on: a call that is made again draws the same."""

    def draw(self, call: int) -> torch.Tensor:
        """The noise of a call, `(batch, ...)`: the increment since the last noise drawn, to the level it ends at."""
        start, end = self.tau[self.begins.setdefault(call, self.used)], self.tau[call + 1]
        self.used = call + 1
        falls = end > start * (1 + 1 / TICKS)
        return torch.stack([path.increment(start, end) if falls else path.apart(call) for path in self.paths])
