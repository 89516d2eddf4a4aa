"""What a sampler is fitted on: starts, and the predictions that a network makes from them.

A start is numbered; a pair is one start with its prompt. What a sampler does with it is followed by `Problem.predict`,
which gives predictions of x0 at any level, so that nothing else here knows what the network is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..schedulers import NoiseSchedule

Predictions = tuple[Tensor, Tensor | None]
"""x0 as the network predicts it with guidance, and without the prompt (None where guidance is off)."""

OnCalls = Callable[[int], object]
"""Told how many predictions for one pair have been made."""


class Problem(ABC):
    """Numbered starts at full noise and a network.

    Attributes:
        schedule: the noise schedule it was trained on.
        batch: how many pairs go through the network at once.
        stateful: whether a prediction depends on those before it in a run (a U-Net that keeps features from step to
            step). Such a run is never entered in the middle.
        step: by how much a parameter is moved to see what follows: more than rounding, less than curvature.
    """

    schedule: NoiseSchedule
    batch: int = 64
    stateful: bool = False
    step: float = 1e-2

    @abstractmethod
    def start(self, pairs: range) -> Tensor:
        """The starts of these pairs at t = T - 1, N(0, I): `(pairs, ...)`, float32 or float64."""

    @abstractmethod
    def predict(self, pairs: range, x: Tensor, t: float, alpha: float, sigma: float, guidance: float) -> Predictions:
        """Predict x0.

        Args:
            pairs: whose latents these are.
            x: `(pairs, ...)` at the level (alpha, sigma).
            t: the timestep that the network is told, in [0, T - 1]; may be fractional and of another level.
            alpha, sigma: the level of x.
            guidance: the guidance scale; 1 or less is none.

        Returns:
            Both of the shape and dtype of x.
        """

    def begin(self, whole_calls: Sequence[int] | None = None) -> None:  # noqa: B027  most problems keep nothing
        """A new run begins: what a network keeps from step to step is forgotten.

        Args:
            whole_calls: the calls, from 0, in which a network that reuses features as the sampler says computes all of
                them; None is every one. Other networks do not listen.
        """

    def exactly(self) -> AbstractContextManager[Any]:
        """Context manager: the network reuses and leaves out nothing, as the teacher is computed."""
        return nullcontext()

    def batches(self, pairs: range) -> Iterator[range]:
        """The pairs in batches."""
        return (pairs[i : i + self.batch] for i in range(0, len(pairs), self.batch))


@dataclass(frozen=True)
class Sets:
    """The three sets of pairs: a sampler is fitted on one, chosen on the second and judged on the third.

    Args:
        fit, validate, judge: how many pairs each has.
    """

    fit: int = 16
    validate: int = 8
    judge: int = 16

    @property
    def pairs(self) -> int:
        """All pairs."""
        return self.fit + self.validate + self.judge

    @property
    def for_fit(self) -> range:
        return range(self.fit)

    @property
    def for_validation(self) -> range:
        return range(self.fit, self.fit + self.validate)

    @property
    def with_states(self) -> range:
        """Those of which the teacher keeps its states: all but those that judge."""
        return range(self.fit + self.validate)

    @property
    def for_judgement(self) -> range:
        return range(self.fit + self.validate, self.pairs)

    @property
    def every(self) -> range:
        return range(self.pairs)
