"""Where a network leaves both halves of a guided prediction, and a sampler that has a use for one finds it.

With guidance a network gives two predictions at every call, one for the prompt and one for none; a scheduler's `step`
is handed their mixture alone. Samplers with two fields weigh one of them by itself. The network that made it
writes it on this board (our U-Nets do; `sd_ext.attach(pipe)` makes any U-Net do so, and the guider of a Modular
pipeline), and `step` takes it from there.

The board belongs to a thread. What stands on it is told apart by the timestep, the very object (or a view of it) that a
pipeline hands to the network and then to `step`: what another run has left is never taken. Where a pipeline hands
`step` a copy, what was noted since the run's last step is taken if it is of one timestep. Nothing on the board is read
by the processor, so no device has to be waited for.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any, Literal, NamedTuple

import torch

MOST = 8
"""Predictions that are remembered: pipelines that take turns in one thread, times the calls each makes for a step."""

Half = Literal["unconditional", "conditional"]
"""The prediction without the prompt, or with it."""

HALVES: tuple[Half, Half] = ("unconditional", "conditional")

NUMBERS = itertools.count(1)
"""Numbers of notes and of steps, for all threads: which came first."""


class Note(NamedTuple):
    """What a network said at one call, or what a guider said of several.

    Args:
        number: out of `NUMBERS`.
        timestep: the object that it was called with.
        output: (batch, channels, ...); with guidance in one batch all parts of it, unconditional first.
        edits: see `edits`.
        halves: the unconditional and the conditional prediction, where whoever wrote them knows.
    """

    number: int
    timestep: Any
    output: torch.Tensor
    edits: bool = False
    halves: tuple[torch.Tensor, torch.Tensor] | None = None


def edits(given: int, predicted: int) -> bool:
    """Whether a network changes a picture by words (InstructPix2Pix): of three parts the unconditional one is last.

    Args:
        given, predicted: the channels that it is called with, and that it predicts; it gets the picture besides.
    """
    return given == 2 * predicted


class Board(threading.local):
    """The notes of a thread, the newest last."""

    def __init__(self) -> None:
        self.notes: deque[Note] = deque(maxlen=MOST)

    def write(self, timestep: Any, output: torch.Tensor, alone: bool = False, edits: bool = False) -> None:
        """Note what a network predicted.

        Args:
            timestep, output: see `Note`.
            alone: whether `output` is the half that a sampler will ask for, and nothing else.
            edits: whether the network changes a picture by words; see `edits`.
        """
        if output.requires_grad:  # every call of a network comes here, so what takes time is not done for nothing
            output = output.detach()
        fields = next(NUMBERS), timestep, output, edits, (output, output) if alone else None
        self.notes.append(tuple.__new__(Note, fields))

    def write_halves(self, timestep: Any, unconditional: torch.Tensor, conditional: torch.Tensor) -> None:
        """Note both halves of a guided prediction, each `(batch, channels, ...)`."""
        halves = unconditional.detach(), conditional.detach()
        self.notes.append(Note(next(NUMBERS), timestep, halves[0], halves=halves))

    def noted(self, timestep: Any) -> list[Note]:
        """All that is noted of a step, oldest first, which stays noted."""
        return [note for note in self.notes if is_same(note.timestep, timestep)]

    def take(
        self, timestep: Any, like: torch.Tensor, half: Half = "unconditional", since: int | None = None
    ) -> torch.Tensor | None:
        """One half of the prediction that led to a step, and forget all that is noted of it.

        Args:
            timestep: as `step` got it.
            like: the network's output as `step` got it, guided: (batch, channels, ...).
            half: which one.
            since: out of `NUMBERS`; where no note has the timestep, those since then will do if they have one among
                them. None takes no such notes.

        Returns:
            Of the shape of `like`, as the network gave it; `like` itself if the network was called without guidance;
            None if no call that fits is noted.
        """
        own = self.noted(timestep)
        if not own and since is not None:
            own = [note for note in self.notes if note.number > since]
            if any(not is_same(note.timestep, own[0].timestep) for note in own):
                return None
        taken = {id(note) for note in own}
        self.notes = deque((note for note in self.notes if id(note) not in taken), MOST)
        return find_half(own, like, HALVES.index(half))


def is_same(one: Any, other: Any) -> bool:
    """Whether two timesteps are one object, or tensors that begin at the same place in memory, or equal numbers."""
    if one is other:
        return True
    tensors = isinstance(one, torch.Tensor), isinstance(other, torch.Tensor)
    if all(tensors):
        places = [(each.untyped_storage().data_ptr(), each.storage_offset()) for each in (one, other)]
        return places[0] == places[1]
    return not any(tensors) and one == other


def find_half(notes: list[Note], like: torch.Tensor, place: int) -> torch.Tensor | None:
    """One half of what is noted of a step, see `Board.take`.

    Args:
        notes: of this step, the newest last.
        like: the guided prediction.
        place: of the half in `HALVES`.
    """
    batch = len(like)
    known = [note.halves for note in notes if note.halves]
    if known:
        half = fitted(known[-1][place], like)
        return half if half is not None and len(half) == batch else None
    outputs = [(output, note) for note in notes if (output := fitted(note.output, like)) is not None]
    alone = [output for output, _ in outputs if len(output) == batch]
    if any(is_same(output, like) for output in alone):
        return like
    for output, note in reversed(outputs):
        if len(output) > batch and len(output) % batch == 0:
            parts = output.split(batch)
            return parts[(-1, 0)[place] if note.edits and len(parts) > 2 else place]
    if len(alone) == 2:
        return told_apart(alone[0], alone[1], like)[place]
    return like if len(alone) == 1 else None


def fitted(output: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
    """A network's output as pipelines hand it to `step`: without the variance that some give besides, and the frames of
    a film as pictures of their own, where `like` is so. None if its shape, save for the batch, is another one.
    """
    if output.dim() == 5 and like.dim() == 4:
        output = output.transpose(1, 2).flatten(0, 1)
    if output.dim() == like.dim() > 1 and output.shape[1] == 2 * like.shape[1]:
        output = output[:, : like.shape[1]]
    return output if output.shape[1:] == like.shape[1:] else None


def told_apart(one: torch.Tensor, other: torch.Tensor, guided: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unconditional and the conditional one of two predictions that a network made in calls of their own: guidance
    leads from the one past the other, which is therefore nearer to the guided one at any scale above 1/2.
    """
    one, other = one.to(guided.device), other.to(guided.device)
    far = [(guided.detach().float() - each.float()).square().sum() for each in (one, other)]
    first = far[0] > far[1]  # chosen by the device
    return torch.where(first, one, other), torch.where(first, other, one)


BOARD = Board()
