"""Guidance by one of Diffusers' guiders in standard pipelines, which by themselves know u + w (c - u) alone.

A guider says which predictions it needs, changes the network for some of them, and mixes what comes of it. Modular
pipelines ask it at every step. Here the network does so in its pipeline's place: it is called for the conditional half
of its batch, then for whatever else the guider needs, and returns the mixture g as both halves. Whatever the pipeline's
own weight w, it makes g + w (g - g) = g of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..board import BOARD
from ..errors import InputError
from ..seams.accelerate import runs_its_own_forward
from ..seams.diffusers.pipelines import can_be_guided, has_three_branches, is_guided
from ..seams.torch import is_compiled_in_place
from .inside.branches import conditional_half, own_lists, unconditional_half
from .inside.told import Statement, place, saying

HALF = {"conditional": conditional_half, "unconditional": unconditional_half}
ASKED = ("set_state", "prepare_inputs", "prepare_models", "cleanup_models")
"""What is asked of a guider, as Modular pipelines do."""


@contextmanager
def guided_by(pipe: Any, guider: Any) -> Iterator[None]:
    """Context manager: a pipeline's guidance is that of a guider of Diffusers.

        with sd_ext.guided_by(pipe, diffusers.guiders.AdaptiveProjectedGuidance(guidance_scale=7.5)):
            pipe(prompt)

    The guider's own scale counts; the pipeline's must be above 1, so that it prepares both halves. It holds for the
    calls of this pipeline in this thread. Samplers of two fields find both halves. A guider remembers its run, so use
    one in one thread at a time.

    Args:
        pipe: a pipeline with a U-Net that guides by two branches: text, image, inpainting, ControlNet, SD and SDXL.
        guider: one of `diffusers.guiders`.

    Raises:
        InputError: a pipeline or guider of another kind; and in a call, one without guidance, or for which the guider
            cannot be used.
    """
    _check(pipe, guider)
    call = _Call(pipe, guider)
    handles = [
        pipe.unet.register_forward_pre_hook(call.before, with_kwargs=True),
        pipe.unet.register_forward_hook(call.after, with_kwargs=True),
    ]
    try:
        with saying(Statement(pipe, alone=lambda: (call.half,))):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Call:
    """The hooks on a network, and what they share during a call.

    Args:
        pipe: the pipeline.
        guider: its guider.
    """

    def __init__(self, pipe: Any, guider: Any):
        self.pipe, self.guider, self.thread = pipe, guider, threading.get_ident()
        self.half = "conditional"
        self.batches: list[Any] | None = None
        self.within = False

    def before(self, network: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the network: ask the guider, and keep the half that it needs first."""
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        at = None if self.within or threading.get_ident() != self.thread else place(self.pipe, timestep)
        if at is None:
            return None
        if not is_guided(self.pipe):
            raise InputError(
                "guided_by: the pipeline draws without guidance; give it a guidance_scale above 1 (the guider's counts)"
            )
        self.given, self.timestep = (args, kwargs), timestep
        self.guider.set_state(step=at[0], num_inference_steps=at[1], timestep=timestep)
        batches = self.batches = self._asked("prepare_inputs", {"half": ("conditional", "unconditional")})
        return self._prepared(network, batches[0])

    def after(self, network: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """After the network: make the guider's further calls, and hand over its mixture."""
        if self.within or self.batches is None or threading.get_ident() != self.thread:
            return None
        batches, self.batches, self.within = self.batches, None, True
        try:
            batches[0].noise_pred = output[0]
            self.guider.cleanup_models(network)
            for batch in batches[1:]:
                given = self._prepared(network, batch)
                try:
                    batch.noise_pred = network(*given[0], **given[1])[0]
                finally:
                    self.guider.cleanup_models(network)
            mixed = self._asked("__call__", batches)
        finally:
            _drop_leftovers(network)
            self.within, self.half = False, "conditional"
        if mixed.pred_uncond is None:
            BOARD.write_halves(self.timestep, mixed.pred, mixed.pred)
        else:
            BOARD.write_halves(self.timestep, mixed.pred_uncond, mixed.pred_cond)
        both = torch.cat([mixed.pred, mixed.pred])
        made: Any = type(output)
        return made(sample=both) if isinstance(output, Mapping) else (both,)

    def _prepared(self, network: torch.nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The network as the guider wants it, and its arguments for one of the halves."""
        self.guider.prepare_models(network)
        self.half = batch.half
        args, kwargs = self.given
        size = len(kwargs["sample"] if "sample" in kwargs else args[0])
        args, kwargs = HALF[batch.half]((args, kwargs), size)
        return args, own_lists(kwargs)

    def _asked(self, method: str, *args: Any) -> Any:
        """What a method of the guider returns. Raises `InputError` where it cannot be used here."""
        try:
            return getattr(self.guider, method)(*args)
        except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"guided_by: {type(self.guider).__name__} cannot guide {type(self.pipe).__name__} ({reason})"
            ) from error


def _drop_leftovers(network: torch.nn.Module) -> None:
    """Remove what Diffusers' hooks leave on modules that they were removed from: the class's own forward, set again.

    Views of the network, and so reuse of its features, need modules without one.
    """
    for module in network.modules():
        if "forward" in vars(module) and runs_its_own_forward(module):
            del vars(module)["forward"]


def _check(pipe: Any, guider: Any) -> None:
    """Raise `InputError` unless the pipeline guides by two branches in one batch, and the guider is one."""
    name = type(pipe).__name__
    if not can_be_guided(pipe) or not isinstance(getattr(pipe, "unet", None), torch.nn.Module):
        raise InputError(f"guided_by: {name} is not a guided pipeline with a U-Net")
    if has_three_branches(pipe):
        raise InputError(f"guided_by: {name} has three branches; pipelines of two are possible")
    if not all(callable(getattr(guider, method, None)) for method in ASKED):
        raise InputError(f"guided_by: {type(guider).__name__} is no guider; take one of diffusers.guiders")
    if is_compiled_in_place(pipe.unet):
        raise InputError("guided_by: unet.compile() hides the network; use pipe.unet = torch.compile(pipe.unet)")
