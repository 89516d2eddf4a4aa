"""Classifier-free guidance in only some of the steps (Kynkaanniemi et al. 2024, arXiv 2404.07724), for any pipeline.

Outside the interval the network computes only the conditional half of its batch. The pipeline still receives two
halves, both the conditional prediction c, which guidance of any weight leaves unchanged: u + w (c - u) = c for u = c.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ..errors import InputError
from ..seams.diffusers.pipelines import can_be_guided, has_three_branches, is_guided, running_pipeline
from ..seams.torch import is_compiled_in_place
from .inside.branches import conditional_half
from .inside.levels import is_number
from .inside.noise import noise_over_signal
from .inside.say import say
from .inside.told import Statement, course, place, saying

NETWORKS = ("unet", "controlnet")


class GuidanceInterval:
    """Context manager in which a pipeline skips the unconditional half of the batch outside an interval.

        with sd_ext.GuidanceInterval(0.2, 0.8, pipe):
            pipe(prompt)

    Works with guided pipelines of two branches that have a `unet`: text, image and inpainting, SD and SDXL, ControlNet
    (whose unconditional half is skipped too), IP-Adapter, any number of pictures. It holds for the calls of this
    pipeline in this thread, which are known by their timesteps; other pipelines with the same networks are left alone.
    The object can be used for any number of blocks, also by several threads. Without guidance it changes nothing,
    which is said. With `guidance_rescale`, the result outside the interval equals the conditional prediction up to
    rounding.

    Args:
        start, stop: guidance is on where start <= i / n < stop in step i of n, counted from 0.
        pipe: the pipeline.
        sigma: (low, high), instead of start and stop: guidance is on where low < sigma <= high. As in the paper, sigma
            is the noise level sigma / alpha at the step's timestep; the scheduler must have `alphas_cumprod`.

    Raises:
        InputError: the interval is empty, or the pipeline is missing or of another kind; and where a block begins
            within another one of the same pipeline.
    """

    def __init__(
        self, start: float = 0.0, stop: float = 1.0, pipe: Any = None, *, sigma: tuple[float, float] | None = None
    ):
        if sigma is None and not _is_interval((start, stop), most=1):
            allowed = "shares of the steps, 0 <= start < stop <= 1"
            raise InputError(f"GuidanceInterval: start and stop must be {allowed}; got {start!r} and {stop!r}")
        if sigma is not None and not _is_interval(sigma, most=math.inf):
            raise InputError(f"GuidanceInterval: sigma must be (low, high) with 0 <= low < high; got {sigma!r}")
        if pipe is None:
            raise InputError("GuidanceInterval: give it the pipeline, as in GuidanceInterval(0.1, 0.8, pipe)")
        self.start, self.stop, self.sigma, self.pipe = start, stop, sigma, pipe
        _check_pipeline(pipe)
        self._open = _Open()

    def __repr__(self) -> str:
        where = f"{self.start}, {self.stop}" if self.sigma is None else f"sigma={self.sigma}"
        return f"GuidanceInterval({where})"

    def __enter__(self) -> Self:
        if any(pipe is self.pipe for pipe in _OPEN.pipes):
            raise InputError("GuidanceInterval: this pipeline is within another GuidanceInterval already; use one")
        _check_pipeline(self.pipe)  # it may have changed since
        with ExitStack() as stack:
            stack.enter_context(saying(Statement(self.pipe, guided_at=self._is_guided)))
            for name in NETWORKS:
                network = getattr(self.pipe, name, None)
                if isinstance(network, torch.nn.Module):
                    for handle in _Half(self, network, threading.get_ident()).handles:
                        stack.callback(handle.remove)
            _OPEN.pipes.append(self.pipe)
            stack.callback(_OPEN.pipes.remove, self.pipe)
            self._open.stacks.append(stack.pop_all())
        return self

    def __exit__(self, *_: object) -> None:
        self._open.stacks.pop().close()

    def leaves_out(self, timestep: Any) -> bool:
        """Whether a call with this timestep is one of the pipeline's, guided, and outside the interval."""
        running = running_pipeline()
        if running is not None and running is not self.pipe and running.scheduler is self.pipe.scheduler:
            return False  # another pipeline of the same parts
        at = place(self.pipe, timestep)
        if at is None:
            return False
        if not is_guided(self.pipe):
            say(logging.WARNING, "GuidanceInterval changes nothing: this run has no guidance")
            return False
        return not self._is_guided(self.pipe, at[0])

    def _is_guided(self, pipe: Any, step: int) -> bool:
        """Whether the step lies within the interval."""
        if self.sigma is None:
            return self.start <= step / course(pipe)[1] < self.stop
        low, high = self.sigma
        return low < _sigma_of_step(pipe, step) <= high


class _Open(threading.local):
    """What a thread has begun and not ended: blocks, and their pipelines."""

    def __init__(self) -> None:
        self.stacks: list[ExitStack] = []
        self.pipes: list[Any] = []


_OPEN = _Open()


class _Half:
    """Hooks that make a network compute the second half of its batch, and return the result for both halves.

    Args:
        interval: says when.
        network: the network that gets the hooks.
        thread: the thread whose calls are meant.

    Attributes:
        handles: the hooks.
    """

    def __init__(self, interval: GuidanceInterval, network: torch.nn.Module, thread: int):
        self.interval, self.thread, self.halved = interval, thread, False
        self.handles: list[RemovableHandle] = [
            network.register_forward_pre_hook(self.before, with_kwargs=True),
            network.register_forward_hook(self.after, with_kwargs=True),
        ]

    def before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the network: halve its arguments, outside the interval."""
        if threading.get_ident() != self.thread:
            return None
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        left_out = self.interval.leaves_out(timestep)  # asked first, since it says where there is no guidance
        self.halved = left_out and not kwargs.get("guess_mode") and len(sample) % 2 == 0
        return conditional_half((args, kwargs), len(sample)) if self.halved else None

    def after(self, _: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """After the network: double its output, if its arguments were halved."""
        return _doubled(output) if self.halved and threading.get_ident() == self.thread else None


def _doubled(output: Any) -> Any:
    """A network's output with every tensor repeated, once for each half of the batch."""
    if isinstance(output, torch.Tensor):
        return torch.cat([output, output])
    if isinstance(output, Mapping):
        return type(output)(**{key: _doubled(each) for key, each in output.items()})
    return type(output)([_doubled(each) for each in output])


def _is_interval(ends: Any, most: float) -> bool:
    pair = isinstance(ends, tuple | list) and len(ends) == 2 and all(map(is_number, ends))
    return pair and 0 <= ends[0] < ends[1] <= most


def _check_pipeline(pipe: Any) -> None:
    """Raise `InputError` unless the pipeline guides by two branches in one batch and its networks obey hooks."""
    name = type(pipe).__name__
    if not can_be_guided(pipe) or getattr(pipe, "unet", None) is None:
        raise InputError(f"GuidanceInterval: {name} is not a guided pipeline with a U-Net")
    if has_three_branches(pipe):
        raise InputError(f"GuidanceInterval: {name} has three branches; pipelines of two are possible")
    for part in NETWORKS:  # networks compiled in place ignore hooks
        network = getattr(pipe, part, None)
        if isinstance(network, torch.nn.Module) and is_compiled_in_place(network):
            raise InputError(
                f"GuidanceInterval: {part}.compile() hides the network; use pipe.{part} = torch.compile(...)"
            )


def _sigma_of_step(pipe: Any, step: int) -> float:
    """sigma / alpha at a step's timestep."""
    sigma = noise_over_signal(pipe.scheduler, float(pipe.scheduler.timesteps[course(pipe)[0] + step]))
    if sigma is None:
        raise InputError(f"GuidanceInterval: {type(pipe.scheduler).__name__} has no alphas_cumprod to tell sigma from")
    return sigma
