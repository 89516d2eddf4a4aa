"""The samples of each optimizer step, and how they are divided into forward passes and processes.

An epoch contains every sample once. The samples of each size (height and width) are shuffled and cut into groups of
`group` samples; those left over of all sizes are put together into mixed groups. One group is one optimizer step. It
is cut into passes, each of one size and at most `batch_size` samples, which are dealt to the processes in turn.

The groups, and a sample's position in its group, depend on (seed, step) only: not on the number of processes or
passes, and not on where a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from sd_ext.errors import InputError


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one process.

    Args:
        step: the optimizer step it belongs to, from 0.
        samples: indices of its samples, all of one size.
        positions: their positions in the step's group. A sample's random numbers depend on (seed, step, position).
        group: how many samples the step has in all.
        idle: True for a repeated pass of weight 0, which keeps all processes at the same number of passes.
    """

    step: int
    samples: tuple[int, ...]
    positions: tuple[int, ...]
    group: int
    idle: bool = False

    @property
    def share(self) -> float:
        """The weight of the pass's mean loss in the step's loss; the shares of a step's passes add up to 1."""
        return 0.0 if self.idle else len(self.samples) / self.group


class StepOrder:
    """The samples of every step, epoch after epoch without end.

    Args:
        sizes: the size of each sample, e.g. (height, width); only samples of equal size share a pass.
        batch_size: most samples in one pass.
        group: samples in one optimizer step: `batch_size` x accumulation x processes.
        seed: seed of the shuffling.

    Attributes:
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        InputError: there are no samples.
    """

    def __init__(self, sizes: Sequence[Hashable], batch_size: int, group: int, seed: int):
        if not sizes:
            raise InputError("there are no samples to train on")
        self.sizes, self.batch_size, self.group, self.seed = list(sizes), batch_size, group, seed
        kinds = {size: kind for kind, size in enumerate(dict.fromkeys(self.sizes))}
        self.members = [np.flatnonzero([kinds[s] == kind for s in self.sizes]) for kind in kinds.values()]
        left = sum(len(m) % group for m in self.members)
        self.steps_per_epoch = sum(len(m) // group for m in self.members) + -(-left // group)
        self._epoch, self._groups = -1, []

    def _shuffle(self, epoch: int) -> list[np.ndarray]:
        """The groups of an epoch. Left-over samples stay sorted by size, so that mixed groups mix few sizes."""
        draw = np.random.default_rng([self.seed, epoch])
        groups, left = [], []
        for members in self.members:
            order = draw.permutation(members)
            whole = len(order) // self.group * self.group
            groups += list(order[:whole].reshape(-1, self.group))
            left.append(order[whole:])
        rest = np.concatenate(left)
        groups += [rest[i : i + self.group] for i in range(0, len(rest), self.group)]
        return [groups[i] for i in draw.permutation(len(groups))]

    def step(self, number: int) -> list[int]:
        """The indices of the samples of step `number`, counted from 0."""
        epoch, place = divmod(number, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._groups = epoch, self._shuffle(epoch)
        return self._groups[place].tolist()

    def passes(self, number: int, process: int = 0, processes: int = 1) -> list[Pass]:
        """The passes of one process in a step.

        Args:
            number: the step, from 0.
            process: number of the process, from 0.
            processes: how many processes there are.

        Returns:
            The passes; every process gets the same number of them.
        """
        samples = self.step(number)
        by_size: dict[Hashable, list[int]] = {}
        for position, sample in enumerate(samples):
            by_size.setdefault(self.sizes[sample], []).append(position)
        pieces = [p[i : i + self.batch_size] for p in by_size.values() for i in range(0, len(p), self.batch_size)]
        idle = -len(pieces) % processes
        made = [
            Pass(number, tuple(samples[p] for p in piece), tuple(piece), len(samples), at >= len(pieces))
            for at, piece in enumerate(pieces + pieces[:1] * idle)
        ]
        return made[process::processes]
