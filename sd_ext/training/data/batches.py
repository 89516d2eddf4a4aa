"""Endless batches of pictures of one size, for the training scripts that take their order as batches.

`StepOrder` is what knows several sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from sd_ext.training.data.draws import random
from sd_ext.training.data.pictures import Pictures


class BatchOrder(Sampler[list[int]]):
    """The indices of each batch of an endless run over `size` samples, shuffled anew each epoch.

    Which samples batch b holds depends on (seed, b) only, so a resumed run needs nothing but its position. Processes
    take turns: process r of n sees batches r, r + n, ...
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int = 0, process: int = 0, processes: int = 1):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.process, self.processes = process, processes
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def sample(self, position: int) -> int:
        """The index of the sample at a position of the endless sequence."""
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            self._epoch = epoch
        return int(self._order[offset])

    def batch(self, number: int) -> list[int]:
        first = (number * self.processes + self.process) * self.batch_size
        return [self.sample(p) for p in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1


def picture_batches(pictures: Pictures, order: BatchOrder, workers: int = 0, flip: bool = False) -> Iterator:
    """Endless batches (pixels (batch, 3, height, width), indices (batch,)) in the given order."""
    dataset: Any = pictures  # has what is needed of a Dataset
    loader = DataLoader(dataset, batch_sampler=order, num_workers=workers, persistent_workers=workers > 0)
    for number, (pixels, indices) in enumerate(loader, order.start):
        if flip:
            mirrored = torch.rand(len(pixels), generator=random(order.seed, 3, number, order.process)) < 0.5
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        yield pixels, indices
