"""Which of several processes this one is, as `accelerate launch` and `torchrun` tell it by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among those that draw together.

    Args:
        number: of this process, counted over all machines from 0.
        count: of processes on all machines.
        local: number of this process on its machine, which is that of its GPU.
    """

    number: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """What RANK, WORLD_SIZE and LOCAL_RANK say; one process if they say nothing.

        Raises:
            InputError: they contradict each other.
        """
        said = [environment.get(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))]
        try:
            made = cls(*map(int, said))
        except ValueError:
            made = cls(-1)
        if not 0 <= made.local <= made.number < made.count:
            raise InputError(
                f"RANK={said[0]}, WORLD_SIZE={said[1]}, LOCAL_RANK={said[2]} name no process of a launch: unset them, "
                "or start with accelerate launch"
            )
        return made

    def choose_gpu(self) -> None:
        """Make this process's own GPU the one that "cuda" means."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(self.local % torch.cuda.device_count())
