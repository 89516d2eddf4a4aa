"""Classifier-free guidance in only some of the steps (Kynkaanniemi et al. 2024, arXiv 2404.07724), for any pipeline.

Outside the interval the network computes only the conditional half of its batch. The pipeline still receives two
halves, both the conditional prediction c, which guidance of any weight leaves unchanged: u + w (c - u) = c for u = c.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import PipelineCallback

from ..errors import InputError
from ..seams.diffusers.pipelines import can_be_guided, count_steps, has_three_branches, is_guided, running_call
from ..seams.torch import is_compiled_in_place
from .inside.branches import conditional_half
from .inside.levels import is_number
from .inside.say import say

NETWORKS = ("unet", "controlnet")


class GuidanceInterval(PipelineCallback):
    """A `callback_on_step_end` that skips the unconditional half of the batch outside an interval.

        interval = GuidanceInterval(0.2, 0.8, pipe)
        pipe(prompt, callback_on_step_end=interval)

    Works with guided pipelines of two branches that have a `unet`: text, image and inpainting, SD and SDXL, ControlNet
    (whose unconditional half is skipped too), IP-Adapter, any number of pictures. The object can be used for any number
    of calls, one after another. Without guidance it changes nothing. With `guidance_rescale`, the result outside the
    interval equals the conditional prediction up to rounding.

    Args:
        start, stop: guidance is on where start <= i / n < stop in step i of n, counted from 0.
        pipe: the pipeline that it will be used with. Pipelines call a callback only after the first step; if `pipe` is
            known, the first step can be skipped too. Otherwise, or with another pipeline, the first step is always
            guided, and a message is logged once.
        sigma: (low, high), instead of start and stop: guidance is on where low < sigma <= high. As in the paper, sigma
            is the noise level sigma / alpha at the step's timestep; the scheduler must have `alphas_cumprod`.
        then: another callback, called at the end of each step.
        then_inputs: names of the tensors that `then` receives. The pipeline asks this object for them, so its argument
            `callback_on_step_end_tensor_inputs` is not needed.

    Raises:
        InputError: the interval is empty, or, when the pipeline is known, it is of another kind.
    """

    def __init__(
        self,
        start: float = 0.0,
        stop: float = 1.0,
        pipe: Any = None,
        *,
        sigma: tuple[float, float] | None = None,
        then: Callable[..., dict[str, Any]] | None = None,
        then_inputs: Sequence[str] = ("latents",),
    ):
        if sigma is None and not _is_interval((start, stop), most=1):
            allowed = "shares of the steps, 0 <= start < stop <= 1"
            raise InputError(f"GuidanceInterval: start and stop must be {allowed}; got {start!r} and {stop!r}")
        if sigma is not None and not _is_interval(sigma, most=math.inf):
            raise InputError(f"GuidanceInterval: sigma must be (low, high) with 0 <= low < high; got {sigma!r}")
        self.start, self.stop, self.sigma = start, stop, sigma
        self.then, self.then_inputs = then, list(getattr(then, "tensor_inputs", then_inputs))
        self._skip: _Skip | None = None
        self._pipe = pipe
        if pipe is not None:
            _check_pipeline(pipe)

    @property
    def tensor_inputs(self) -> list[str]:
        """The names of the tensors for `then`.

        Diffusers reads this when a call begins, so the first step is prepared here.
        """
        self._arm(self._pipe, 0)
        return self.then_inputs

    def __repr__(self) -> str:
        where = f"{self.start}, {self.stop}" if self.sigma is None else f"sigma={self.sigma}"
        return f"GuidanceInterval({where})"

    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """At the end of a step, call `then` and prepare the next step.

        Arguments and result as for Diffusers' callbacks.
        """
        _check_pipeline(pipeline)
        if step_index == 0 and self._pipe is not pipeline and not self._is_guided(pipeline, 0) and is_guided(pipeline):
            say(
                logging.WARNING,
                "GuidanceInterval: the first step was guided; to leave it out too, pass it the pipeline that calls it",
            )
        tensors = self.then(pipeline, step_index, timesteps, callback_kwargs) if self.then else callback_kwargs
        self._arm(pipeline, step_index + 1)
        return tensors

    def _arm(self, pipe: Any, step: int) -> None:
        """Make the networks skip the unconditional half in this step, if it lies outside the interval."""
        if self._skip is not None:
            self._skip.remove()
            self._skip = None
        if pipe is None or (step and (step >= count_steps(pipe) or self._is_guided(pipe, step))):
            return
        run = pipe.scheduler.timesteps if step else None
        self._skip = _Skip(pipe, lambda: self._applies(pipe, step, run))

    def _applies(self, pipe: Any, step: int, run: torch.Tensor | None) -> bool:
        """Whether to skip: this is still the call that was prepared for, guided, and outside the interval."""
        if running_call()[1] is None:  # another call: the one that this was prepared for failed before its first step
            return False
        same = run is None or _same(pipe.scheduler.timesteps, run)
        return same and is_guided(pipe) and not self._is_guided(pipe, step)

    def _is_guided(self, pipe: Any, step: int) -> bool:
        """Whether the step lies within the interval."""
        if self.sigma is None:
            return self.start <= step / count_steps(pipe) < self.stop
        low, high = self.sigma
        return low < _sigma_of_step(pipe, step) <= high


class _Skip:
    """Hooks that make each network compute the second half of its batch, once, and return the result for both halves.

    Args:
        pipe: the pipeline whose networks get the hooks.
        applies: whether to do so, asked when the network is called.
    """

    def __init__(self, pipe: Any, applies: Callable[[], bool]):
        self.applies, self.handles = applies, []
        for name in NETWORKS:
            network = getattr(pipe, name, None)
            if isinstance(network, torch.nn.Module):
                self._add(pipe, network)

    def _add(self, pipe: Any, network: torch.nn.Module) -> None:
        batch = 0

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal batch
            if running_call()[0] is not pipe:
                return None
            before_handle.remove()
            sample = kwargs["sample"] if "sample" in kwargs else args[0]
            batch = len(sample) if self.applies() and not kwargs.get("guess_mode") else 0
            return conditional_half((args, kwargs), batch) if batch else None

        def after(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            if running_call()[0] is not pipe:
                return None
            after_handle.remove()
            return _doubled(output) if batch else None

        before_handle = network.register_forward_pre_hook(before, with_kwargs=True)
        after_handle = network.register_forward_hook(after, with_kwargs=True)
        self.handles += [before_handle, after_handle]

    def remove(self) -> None:
        """Remove the hooks that are left."""
        for handle in self.handles:
            handle.remove()


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


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape)


def _sigma_of_step(pipe: Any, step: int) -> float:
    """sigma / alpha at a step's timestep; its logarithm is interpolated between trained timesteps."""
    alphas = getattr(pipe.scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise InputError(f"GuidanceInterval: {type(pipe.scheduler).__name__} has no alphas_cumprod to tell sigma from")
    timesteps = pipe.scheduler.timesteps
    timestep = float(timesteps[len(timesteps) - count_steps(pipe) + step])
    alphas = np.clip(np.asarray(alphas.cpu(), dtype=np.float64), 1e-12, None)  # keeps sigma finite at zero terminal SNR
    return float(np.exp(np.interp(timestep, np.arange(len(alphas)), 0.5 * np.log((1 - alphas) / alphas))))
