"""Which pipelines, networks and guiders leave their predictions on the board: those that are attached.

`sd_ext.attach(pipe)` puts a hook on the pipeline's U-Net, and on the guider of a Modular pipeline, and notes the
pipeline, so that samplers and U-Nets can ask it what it does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

import torch

from .board import BOARD, Half, edits
from .errors import InputError


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
        sample, predicted = kwargs.get("sample", args[0] if args else None), output[0]
        given = getattr(sample, "shape", ())
        of_picture = len(given) > 1 and predicted.ndim > 1 and edits(given[1], predicted.shape[1])
        BOARD.write(kwargs.get("timestep", args[1] if len(args) > 1 else None), predicted, edits=of_picture)


class InPlace:
    """What `network.compile()` has put in the place of the network's call, with a note of what it predicted. The hooks
    of the network are compiled as well, and what is compiled can note nothing.
    """

    def __init__(self, network: torch.nn.Module, compiled: Any):
        self.network, self.compiled = ref(network), compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output, network = self.compiled(*args, **kwargs), self.network()
        if network is not None:
            note_output(network, args, kwargs, output)
        return output


class NetworkHook:
    """`note_output` on a network, called as it is or compiled in place.

    Args:
        network: the network.
    """

    def __init__(self, network: torch.nn.Module):
        self.network, self.hook = ref(network), None
        self.renew()

    def renew(self) -> None:
        """Put it where the network's call is now: it may have been compiled in place since."""
        network: Any = self.network()
        compiled = getattr(network, "_compiled_call_impl", None)
        if network is None or isinstance(compiled, InPlace):
            return
        if compiled is not None:
            self._remove_hook()
            network._compiled_call_impl = InPlace(network, compiled)
        elif self.hook is None:
            self.hook = network.register_forward_hook(note_output, with_kwargs=True)

    def remove(self) -> None:
        self._remove_hook()
        network: Any = self.network()
        if isinstance(compiled := getattr(network, "_compiled_call_impl", None), InPlace):
            network._compiled_call_impl = compiled.compiled

    def _remove_hook(self) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


def renew() -> None:
    """Before a run that needs what networks leave: find those that were compiled in place after they were attached."""
    with _LOCK:
        for hook in list(ATTACHED.values()):
            if isinstance(hook, NetworkHook):
                hook.renew()


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
    a second call does nothing. `network.compile()` may come before or after; of `torch.compile(network)` attach what it
    returns.

    Args:
        pipe: a pipeline with a U-Net, or a U-Net. In a Modular pipeline the components must have been loaded.

    Raises:
        InputError: it has none.
    """
    network, guider = _network(pipe), getattr(pipe, "guider", None)
    with _LOCK:
        if network not in ATTACHED:
            ATTACHED[network] = NetworkHook(network)
        if hasattr(guider, "get_state") and guider not in ATTACHED:
            ATTACHED[guider] = GuiderHook(guider)
        if network is pipe:
            ALONE.add(network)
            return
        with suppress(TypeError):  # of objects that cannot be kept track of; their samplers ask for the strength
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
