"""Where a network leaves its unconditional prediction, and a sampler that has a use for it finds it.

With guidance a network gives two predictions at every call, one for the prompt and one for none; a scheduler's `step`
is handed their mixture alone. Samplers with two fields weigh the unconditional one by itself. The network that made it
writes it on this board (our U-Nets do; `sd_ext.attach(pipe)` makes any U-Net do so), and `step` takes it from there.

The board belongs to a thread. What stands on it is told apart by the timestep, the very object (or a view of it) that a
pipeline hands to the network and then to `step`: what another run has left is never taken. Nothing on it is read by the
processor, so no device has to be waited for.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch

from .errors import InputError

MOST = 8
"""Predictions that are remembered: pipelines that take turns in one thread, times the calls each makes for a step."""


class Note(NamedTuple):
    """What a network said at one call.

    Args:
        timestep: the object that it was called with.
        output: (batch, channels, ...); with guidance in one batch the first part is unconditional.
        alone: whether `output` is the unconditional prediction and nothing else.
    """

    timestep: Any
    output: torch.Tensor
    alone: bool


class Board(threading.local):
    """The notes of a thread, the newest last."""

    def __init__(self) -> None:
        self.notes: deque[Note] = deque(maxlen=MOST)

    def write(self, timestep: Any, output: torch.Tensor, alone: bool = False) -> None:
        """Note what a network predicted.

        Args:
            timestep, output, alone: see `Note`.
        """
        self.notes.append(Note(timestep, output.detach(), alone))

    def take(self, timestep: Any, like: torch.Tensor) -> torch.Tensor | None:
        """The unconditional prediction of the call that led to a step, and forget it.

        Args:
            timestep: as `step` got it.
            like: the network's output as `step` got it, guided: (batch, channels, ...).

        Returns:
            Of its shape, as the network gave it; None if no call that fits is noted, or guidance was off.
        """
        found = self.find(timestep, like)
        taken = {id(note) for note in self.notes if is_same(note.timestep, timestep)}
        self.notes = deque((note for note in self.notes if id(note) not in taken), MOST)
        return found

    def find(self, timestep: Any, like: torch.Tensor) -> torch.Tensor | None:
        """What `take` would return; it stays."""
        own = [note for note in self.notes if is_same(note.timestep, timestep)]
        found = [part for note in own if (part := unconditional(note, like)) is not None]
        return found[-1] if found else None


def is_same(one: Any, other: Any) -> bool:
    """Whether two timesteps are one object, or tensors that begin at the same place in memory, or equal numbers."""
    if one is other:
        return True
    tensors = isinstance(one, torch.Tensor), isinstance(other, torch.Tensor)
    if all(tensors):
        places = [(each.untyped_storage().data_ptr(), each.storage_offset()) for each in (one, other)]
        return places[0] == places[1]
    return not any(tensors) and one == other


def unconditional(note: Note, like: torch.Tensor) -> torch.Tensor | None:
    """The unconditional part of a note: all of it, or the first of two or more parts of the batch; None where the
    shapes do not fit.
    """
    output, batch = note.output, len(like)
    if output.shape[1:] != like.shape[1:]:
        return None
    if note.alone:
        return output if len(output) == batch else None
    return output[:batch] if len(output) > batch and len(output) % batch == 0 else None


BOARD = Board()


# ---- networks that write on it ---------------------------------------------------------------------------------------

ATTACHED: WeakKeyDictionary[torch.nn.Module, Any] = WeakKeyDictionary()
"""The hooks that `attach` has put on networks."""

PIPELINES: WeakSet[Any] = WeakSet()
"""The pipelines that were attached; samplers that depend on the strength of guidance ask their own for it."""


def note_output(network: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """A forward hook that notes what a U-Net predicted; its arguments are those of PyTorch's hooks."""
    if not torch.compiler.is_compiling():  # the compiled network notes it, not what is compiled into it
        BOARD.write(kwargs.get("timestep", args[1] if len(args) > 1 else None), output[0])


def attach(pipe: Any) -> None:
    """Make a pipeline's U-Net leave its unconditional predictions for samplers of two fields.

    Samplers that depend on the strength of guidance are told it by the pipeline from then on. Nothing else changes, and
    a second call does nothing. Of a U-Net that is to be compiled, attach the compiled one.

    Args:
        pipe: a pipeline with a U-Net, or a U-Net.

    Raises:
        InputError: it has none.
    """
    network = _network(pipe)
    if network not in ATTACHED:
        ATTACHED[network] = network.register_forward_hook(note_output, with_kwargs=True)
    if network is not pipe:
        PIPELINES.add(pipe)


def detach(pipe: Any) -> None:
    """Undo `attach`; nothing happens where nothing was attached."""
    if hook := ATTACHED.pop(_network(pipe), None):
        hook.remove()
    PIPELINES.discard(pipe)


def pipelines_of(scheduler: Any) -> list[Any]:
    """The attached pipelines whose scheduler this very object is now."""
    return [pipe for pipe in PIPELINES if getattr(pipe, "scheduler", None) is scheduler]


def _network(pipe: Any) -> torch.nn.Module:
    network = pipe if isinstance(pipe, torch.nn.Module) else getattr(pipe, "unet", None)
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"{type(pipe).__name__} has no U-Net that could leave its predictions")
    return network
