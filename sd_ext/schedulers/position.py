"""Which call of a run a step is for, by the timestep that it is handed.

In a pipeline's loop that is a view of the scheduler's `timesteps`, which its place in memory tells apart from all
others: no value is read, so no device has to be waited for, and timesteps that come twice are told apart. Numbers, and
tensors from elsewhere, are compared by value.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError

CLOSE = 1e-3
"""Timesteps that differ by less are the same."""


def number(timestep: Any, close: float = CLOSE) -> tuple[float, float]:
    """A timestep's value and how far it may be off.

    Args:
        timestep: a number, or a tensor of one number or the same number for each sample. A tensor is read, so on
            another device it is waited for.
        close: how far a timestep may be off.

    Raises:
        InputError: neither, or a tensor of several numbers.
    """
    off = close
    try:
        if isinstance(timestep, torch.Tensor):
            values = timestep.detach().flatten().tolist()
            if not values or values != values[:1] * len(values):
                raise InputError(f"a step takes one timestep for the whole batch, got {values}")
            if timestep.is_floating_point():
                off = max(off, torch.finfo(timestep.dtype).eps * abs(values[0]))  # rounded to half precision
            timestep = values[0]
        return float(timestep), off
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"a timestep must be a number or a tensor, got {timestep!r}") from error


class Places:
    """The timesteps of a run's calls.

    Args:
        timesteps: `(calls,)`, on any device.
        values: the same as numbers.
    """

    def __init__(self, timesteps: torch.Tensor, values: list[float]):
        self.timesteps, self.values = timesteps, values
        self.close = CLOSE if max(map(abs, values), default=0) > 2 else CLOSE / 1000
        """Timesteps are in the hundreds, or from about 0 to 1."""
        self.width = timesteps.element_size()
        self.address = timesteps.data_ptr() or -1
        """Where the first one is in memory; -1 on devices that do not say."""
        self.copied: tuple[int, int, torch.Tensor] | None = None
        """Address of the first timestep of a copy on another device, bytes of each, and a view of it, which keeps it
        in memory.
        """

    def is_due(self, timestep: Any, call: int) -> bool:
        """Whether a timestep is surely that of this call. Every step asks, so nothing is read and little is done."""
        if type(timestep) is torch.Tensor:
            return timestep.data_ptr() == self.address + call * self.width
        return call < len(self.values) and timestep == self.values[call]

    @staticmethod
    def waits(timestep: torch.Tensor) -> bool:
        """Whether reading a tensor makes the processor wait for its device."""
        return timestep.device.type != "cpu"

    def place(self, timestep: Any, due: int = 0) -> int | None:
        """Which call a timestep is that of; None if it is none of the run's.

        Of a copy of `timesteps` on another device one view is read, and those that follow it in memory are taken for
        those that follow it in the run.

        Args:
            timestep: see `number`.
            due: the call that comes next. Where a value comes more than once, this call is meant, or else the one
                before it, or else the first.

        Raises:
            InputError: see `number`.
        """
        if isinstance(timestep, torch.Tensor) and timestep.is_meta:  # there is nothing to read
            return int(timestep.storage_offset()) - int(self.timesteps.storage_offset())
        elsewhere = isinstance(timestep, torch.Tensor) and self.waits(timestep)
        if isinstance(timestep, torch.Tensor) and self.address > 0 and timestep.device == self.timesteps.device:
            place, rest = divmod(timestep.data_ptr() - self.address, self.width)
            if 0 <= place < len(self.values) and not rest:
                return place
        if elsewhere and self.copied and due < len(self.values):
            first, width, _ = self.copied
            if timestep.data_ptr() == first + due * width:
                return due
        found = self.by_value(*number(timestep, self.close), due)
        if elsewhere and found is not None and timestep.data_ptr():
            width = timestep.element_size()
            self.copied = timestep.data_ptr() - found * width, width, timestep
        return found

    def by_value(self, value: float, off: float, due: int) -> int | None:
        """The call whose timestep is this value to within `off`, the call that is due or else the one before it if it
        fits, or else the closest.
        """
        for call in (due, due - 1):
            if 0 <= call < len(self.values) and abs(self.values[call] - value) <= off:
                return call
        gaps = [abs(each - value) for each in self.values]
        return gaps.index(min(gaps)) if min(gaps) <= off else None
