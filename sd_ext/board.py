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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

import torch

from .errors import InputError

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
        given: the shape of what it was called with, if known.
        halves: the unconditional and the conditional prediction, where whoever wrote them knows.
    """

    number: int
    timestep: Any
    output: torch.Tensor
    given: Sequence[int] | None = None
    halves: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def edits(self) -> bool:
        """Whether the network changes a picture by words (InstructPix2Pix): of three parts the unconditional one is
        last. It is called with twice as many channels as it predicts.
        """
        return self.given is not None and len(self.given) > 1 and self.given[1] == 2 * self.output.shape[1]


class Board(threading.local):
    """The notes of a thread, the newest last."""

    def __init__(self) -> None:
        self.notes: deque[Note] = deque(maxlen=MOST)

    def write(self, timestep: Any, output: torch.Tensor, alone: bool = False, sample: Any = None) -> None:
        """Note what a network predicted.

        Args:
            timestep, output: see `Note`.
            alone: whether `output` is the half that a sampler will ask for, and nothing else.
            sample: what the network was called with, `(batch, channels, ...)`.
        """
        if output.requires_grad:  # every call of a network comes here, so what takes time is not done for nothing
            output = output.detach()
        given = getattr(sample, "shape", None)
        fields = next(NUMBERS), timestep, output, given, (output, output) if alone else None
        self.notes.append(tuple.__new__(Note, fields))

    def write_halves(self, timestep: Any, unconditional: torch.Tensor, conditional: torch.Tensor) -> None:
        """Note both halves of a guided prediction, each `(batch, channels, ...)`."""
        halves = unconditional.detach(), conditional.detach()
        self.notes.append(Note(next(NUMBERS), timestep, halves[0], halves=halves))

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
        own = [note for note in self.notes if is_same(note.timestep, timestep)]
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


# ---- who writes on it ------------------------------------------------------------------------------------------------


class Removable(Protocol):
    def remove(self) -> None: ...


ATTACHED: WeakKeyDictionary[Any, Removable] = WeakKeyDictionary()
"""The hooks that `attach` has put on networks and guiders."""

ALONE: WeakSet[torch.nn.Module] = WeakSet()
"""The networks that were attached by themselves, not with a pipeline."""


class Things:
    """A set of objects that are told apart by identity and not kept alive. They need not be hashable."""

    def __init__(self) -> None:
        self._refs: dict[int, ref[Any]] = {}

    def add(self, thing: Any) -> None:
        """Raises `TypeError` for objects that allow no weak references."""
        key = id(thing)
        self._refs[key] = ref(thing, lambda _: self._refs.pop(key, None))

    def discard(self, thing: Any) -> None:
        self._refs.pop(id(thing), None)

    def clear(self) -> None:
        self._refs.clear()

    def __contains__(self, thing: Any) -> bool:
        return id(thing) in self._refs

    def __bool__(self) -> bool:
        return bool(self._refs)

    def __iter__(self) -> Iterator[Any]:
        return iter([thing for each in list(self._refs.values()) if (thing := each()) is not None])


PIPELINES = Things()
"""The pipelines that were attached; samplers that depend on the strength of guidance ask their own for it, and U-Nets
the one that calls them what it does."""

_HOLDS: dict[int, int] = {}
"""How many blocks of `attached` keep a pipeline, by its id, attached that was not so before."""

_LOCK = threading.RLock()


def note_output(network: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """A forward hook that notes what a U-Net predicted; its arguments are those of PyTorch's hooks."""
    if not torch.compiler.is_compiling():  # the compiled network notes it, not what is compiled into it
        sample = kwargs.get("sample", args[0] if args else None)
        BOARD.write(kwargs.get("timestep", args[1] if len(args) > 1 else None), output[0], sample=sample)


def note_guidance(guider: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of a guider's `forward`: notes both halves that it has mixed, or that there was no guidance."""
    mixed = type(guider).forward(guider, *args, **kwargs)
    if isinstance(hook := ATTACHED.get(guider), GuiderHook):
        hook.half = None
    timestep = guider.get_state()["timestep"]
    if mixed.pred_uncond is None:
        BOARD.write(timestep, mixed.pred)
    else:
        BOARD.write_halves(timestep, mixed.pred_uncond, mixed.pred_cond)
    return mixed


class GuiderHook:
    """`note_guidance` on a guider, which is no module that PyTorch could put a hook on; and it knows the half that the
    guider's pipeline is about to compute.

    Attributes:
        half: that half; None between the calls of the network.
    """

    def __init__(self, guider: Any):
        self.guider = ref(guider)
        self.half: Half | None = None
        self.ahead: list[Half] = []
        guider.forward = partial(note_guidance, guider)
        guider.prepare_inputs, guider.prepare_models = self.inputs, self.models

    def inputs(self, data: Any) -> Any:
        """In the place of `prepare_inputs`: a field that says the half goes into each batch, and is noted."""
        guider: Any = self.guider()
        batches = type(guider).prepare_inputs(guider, {**data, "half": ("conditional", "unconditional")})
        self.ahead = [batch.half for batch in batches]
        return batches

    def models(self, denoiser: Any) -> None:
        """In the place of `prepare_models`, which is called before each batch."""
        self.half = self.ahead.pop(0) if self.ahead else None
        guider: Any = self.guider()
        type(guider).prepare_models(guider, denoiser)

    def remove(self) -> None:
        """Undo it."""
        for name in ("forward", "prepare_inputs", "prepare_models"):
            vars(self.guider()).pop(name, None)


def half_of(guider: Any) -> Half | None:
    """Which half of guidance the pipeline of an attached guider is computing; None if that is not known."""
    hook = ATTACHED.get(guider)
    return hook.half if isinstance(hook, GuiderHook) else None


def attach(pipe: Any) -> None:
    """Make a pipeline's U-Net leave both halves of its guided predictions for samplers of two fields; in a Modular
    pipeline also its guider, which knows them best.

    Samplers that depend on the strength of guidance are told it by the pipeline from then on. Nothing else changes, and
    a second call does nothing. Of a U-Net that is to be compiled, attach the compiled one.

    Args:
        pipe: a pipeline with a U-Net, or a U-Net. In a Modular pipeline the components must have been loaded.

    Raises:
        InputError: it has none.
    """
    network, guider = _network(pipe), getattr(pipe, "guider", None)
    if network not in ATTACHED:
        ATTACHED[network] = network.register_forward_hook(note_output, with_kwargs=True)
    if hasattr(guider, "get_state") and guider not in ATTACHED:
        ATTACHED[guider] = GuiderHook(guider)
    if network is pipe:
        ALONE.add(network)
    else:
        with suppress(TypeError), _LOCK:  # of objects that cannot be kept track of; their samplers ask for the strength
            PIPELINES.add(pipe)


def detach(pipe: Any) -> None:
    """Undo `attach`; nothing happens where nothing was attached.

    A U-Net that another attached pipeline has too, or that was attached by itself, goes on leaving its predictions.
    """
    network = _network(pipe)
    with _LOCK:
        PIPELINES.discard(pipe)
        if network is pipe:
            ALONE.discard(network)
        for thing in (network, getattr(pipe, "guider", None)):
            if thing is None or thing in ALONE or any(thing in _parts(other) for other in PIPELINES):
                continue
            if hook := ATTACHED.pop(thing, None):
                hook.remove()


def _parts(pipe: Any) -> Things:
    """What `attach` puts hooks on in a pipeline."""
    parts = Things()
    for name in ("unet", "guider"):
        if (part := getattr(pipe, name, None)) is not None:
            parts.add(part)
    return parts


@contextmanager
def attached(pipe: Any) -> Iterator[None]:
    """Context manager: the pipeline is attached, and afterwards as it was before. Blocks may overlap.

    Raises:
        InputError: it has no U-Net.
    """
    _network(pipe)
    with _LOCK:
        first = pipe not in PIPELINES and not _HOLDS.get(id(pipe))
        if first:
            attach(pipe)
        if first or id(pipe) in _HOLDS:
            _HOLDS[id(pipe)] = _HOLDS.get(id(pipe), 0) + 1
    try:
        yield
    finally:
        with _LOCK:
            if id(pipe) in _HOLDS:
                _HOLDS[id(pipe)] -= 1
                if not _HOLDS[id(pipe)]:
                    del _HOLDS[id(pipe)]
                    detach(pipe)


def pipelines() -> list[Any]:
    """The attached pipelines."""
    if not PIPELINES:
        return []
    with _LOCK:
        return list(PIPELINES)


def pipelines_of(scheduler: Any) -> list[Any]:
    """The attached pipelines whose scheduler this very object is now."""
    return [pipe for pipe in pipelines() if getattr(pipe, "scheduler", None) is scheduler]


def _network(pipe: Any) -> torch.nn.Module:
    network = pipe if isinstance(pipe, torch.nn.Module) else getattr(pipe, "unet", None)
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"{type(pipe).__name__} has no U-Net that could leave its predictions")
    return network
