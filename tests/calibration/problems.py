"""Problems whose network is an exact score: fast, in float64, and with nothing in common with the pipelines' code."""

from __future__ import annotations

import numpy as np
import torch

from sd_ext.calibration.problem import Problem
from sd_ext.schedulers import NoiseSchedule

from ..schedulers.mixture import Mixture

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}


class MixtureProblem(Problem):
    """Starts of a Gaussian mixture; with `free`, guidance away from a second one.

    Args:
        data: the mixture.
        pairs: how many starts.
        seed: of the starts.
        free: what is predicted without the prompt; None for no guidance.
        batch: pairs at once.
        stateful: claim to keep something from step to step, and see that runs are then never entered in the middle.
        config: of the noise schedule.
    """

    step = 1e-4

    def __init__(
        self,
        data: Mixture,
        pairs: int,
        seed: int = 0,
        free: Mixture | None = None,
        batch: int = 4096,
        stateful: bool = False,
        config: dict | None = None,
    ):
        self.schedule = NoiseSchedule.from_config(config or SD)
        self.data, self.free, self.batch, self.stateful = data, free, batch, stateful
        shape = pairs, data.means.shape[1]
        self.starts = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
        self.made = self.runs = 0
        self.levels: list[float] = []

    def start(self, pairs: range) -> torch.Tensor:
        return self.starts[pairs.start : pairs.stop]

    def begin(self, whole_calls=None) -> None:
        self.runs += 1
        self.levels = []

    def predict(self, pairs, x, t, alpha, sigma, guidance):
        self.made += len(pairs)
        assert len(x) == len(pairs) <= self.batch
        if self.stateful:
            assert not self.levels or t < self.levels[-1], "a run of another begins in the middle of this one"
            assert self.levels or t > 990, "a run is entered in the middle"
            self.levels.append(t)
        told = self.schedule.at([t])
        level = float(told.alpha[0]), float(told.sigma[0])

        def x0(data: Mixture) -> torch.Tensor:  # the network says the noise of the level it is told
            return (x - sigma * torch.from_numpy(data.eps(x.numpy(), *level))) / alpha

        if self.free is None:
            return x0(self.data), None
        free = x0(self.free)
        return free + guidance * (x0(self.data) - free), free


class PointProblem(MixtureProblem):
    """Data that are one point: every prediction is exact, whatever is told, with and without the prompt."""

    def __init__(self, pairs: int = 3, dimensions: int = 5):
        super().__init__(Mixture(np.ones(1), np.ones((1, dimensions)), np.ones(1)), pairs)
        self.point = torch.arange(1.0, dimensions + 1, dtype=torch.float64)

    def predict(self, pairs, x, t, alpha, sigma, guidance):
        x0 = self.point.expand_as(x).clone()
        return x0, x0
