"""What is said about a call of the network by whoever makes it: step, strength of guidance, parts of the batch.

A U-Net sees a batch and a timestep. Whether the batch holds both halves of a guided prediction or several pictures, and
which step of how many it belongs to, only the pipeline knows. It is asked, in this order:

1. the pipeline of Diffusers in whose call the network runs, with what `sampling(pipe)` and `GuidanceInterval` add;
2. where none runs: `sampling(pipe)`, and pipelines that `sd_ext.attach` knows: the one whose scheduler owns the
   timestep, the very object that the network is called with (as on `board`);
3. `sampling` for a network, or for a loop that hands over copies of its timesteps.

If nobody says anything, every row of a batch is a picture of its own: two pictures from equal noise look like guidance
in their first step, and are none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...attaching import attached, half_of, pipelines
from ...board import HALVES
from ...errors import InputError
from ...seams.diffusers.pipelines import batch_parts, count_steps, running_pipeline
from ...seams.torch import uncompiled
from .levels import is_number

CONDITIONAL = HALVES[1:]
"""The parts of a batch without guidance."""


@dataclass(frozen=True)
class Told:
    """What is known of a call.

    Args:
        branches: what the equal parts of the batch are, in their order: "unconditional", "conditional", or other names
            where a pipeline has more.
        guidance: the weight w of guidance u + w (c - u), if known; 1 of a pipeline whose run has none.
        step: the step in the run, from 0, if known.
        total: the number of steps, if known.
        sure: whether somebody said so.
        apart: whether each half of guidance has a call of its own.
        pipe: the pipeline that makes the call, if one does.
        scheduler: what its run is made with, if known.
        texts: prompt -> text states, `(1, tokens, channels)`, for a loop of one's own.
    """

    branches: tuple[str, ...] = CONDITIONAL
    guidance: float | None = None
    step: int | None = None
    total: int | None = None
    sure: bool = True
    apart: bool = False
    pipe: Any = field(default=None, compare=False)
    scheduler: Any = field(default=None, compare=False)
    texts: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)

    @property
    def guided(self) -> bool:
        """Whether the batch consists of the unconditional half and the conditional one."""
        return self.branches == HALVES


UNTOLD = Told(sure=False)


@dataclass(frozen=True)
class Statement:
    """What `sampling` says while its block runs.

    Args:
        about: a pipeline or a network.
        fixed: what is said of a network; None asks the pipeline.
        guided_at: (step, pipeline) -> whether the unconditional half is computed at this step.
        alone: () -> what the batch of the present call is, where each half has a call of its own.
    """

    about: Any
    fixed: Told | None = None
    guided_at: Callable[[Any, int], bool] | None = None
    alone: Callable[[], tuple[str, ...]] | None = None

    def covers(self, network: Any) -> bool:
        """Whether it is about this network."""
        return uncompiled(self.about if self.fixed else getattr(self.about, "unet", None)) is network

    def tell(self, timestep: Any) -> Told:
        """What it says of a call with this timestep."""
        if self.fixed is not None:
            return self.fixed
        told = of_pipeline(self.about, timestep)
        if self.alone:
            return replace(told, branches=self.alone(), apart=True)
        if self.guided_at and told.guided and told.step is not None and not self.guided_at(self.about, told.step):
            return replace(told, branches=CONDITIONAL)
        return told


class _Said(threading.local):
    """The statements of a thread, the innermost last."""

    def __init__(self) -> None:
        self.statements: list[Statement] = []


_SAID = _Said()


@contextmanager
def saying(statement: Statement) -> Iterator[None]:
    """Context manager: what a statement says holds for the calls of this thread."""
    _SAID.statements.append(statement)
    try:
        yield
    finally:
        _SAID.statements.remove(statement)


@contextmanager
def sampling(
    pipe: Any,
    *,
    guidance_scale: float | None = None,
    branches: Sequence[str] | None = None,
    scheduler: Any = None,
    texts: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[None]:
    """Context manager: U-Nets and samplers are told what the pipeline does, so that nothing has to be inferred.

        with sd_ext.sampling(pipe):
            pipe(prompt)

        with sd_ext.sampling(unet, guidance_scale=7.5):  # a loop of your own
            unet(torch.cat([x, x]), t, torch.cat([negative, positive]))

    It holds for this thread. `sd_ext.attach(pipe)` says the same of all calls of a pipeline from then on.

    Args:
        pipe: a pipeline with a `unet`, or a network that is called by a loop of your own.
        guidance_scale: for a network: the weight of guidance, if there is any. Batches are then
            [unconditional, conditional], unless `branches` says otherwise.
        branches: for a network: what the parts of a batch are, in their order.
        scheduler: for a network: the scheduler of the run, which guidance on x0 needs.
        texts: for a network: prompt -> text states `(1, tokens, channels)`, for guidance by further texts; the
            unconditional one is `""`.

    Raises:
        InputError: an object without a U-Net, or something said about a pipeline that it says by itself.
    """
    if isinstance(pipe, torch.nn.Module):
        said = replace(_said(guidance_scale, branches), scheduler=scheduler, texts=dict(texts or {}))
        with saying(Statement(uncompiled(pipe), said)):
            yield
        return
    given = {"guidance_scale": guidance_scale, "branches": branches, "scheduler": scheduler, "texts": texts}
    if named := [name for name, value in given.items() if value is not None]:
        raise InputError(f"sampling: a pipeline says its {' and '.join(named)} by itself; leave them out")
    with attached(pipe), saying(Statement(pipe)):
        yield


def _said(guidance: Any, branches: Any) -> Told:
    if guidance is not None and not is_number(guidance):
        raise InputError(f"sampling: guidance_scale must be a number, got {guidance!r}")
    if branches is None:
        return Told(HALVES if guidance is not None and guidance > 1 else CONDITIONAL, guidance)
    if isinstance(branches, str) or not branches or not all(isinstance(each, str) for each in branches):
        raise InputError(f"sampling: branches must be names such as ('unconditional', 'conditional'), got {branches!r}")
    return Told(tuple(branches), guidance)


def tell(network: Any, timestep: Any, rows: int) -> Told:
    """What is said about a call; see the top of this file.

    Args:
        network: the U-Net.
        timestep: as it is called with.
        rows: the size of the batch.
    """
    told = _find(network, timestep)
    return told if rows % len(told.branches) == 0 else UNTOLD


def _find(network: Any, timestep: Any) -> Told:
    said = [statement for statement in reversed(_SAID.statements) if statement.covers(network)]
    running = running_pipeline()
    if running is not None and uncompiled(getattr(running, "unet", None)) is network:  # others may share its scheduler
        about = next((each for each in said if each.about is running), None)
        return about.tell(timestep) if about else of_pipeline(running, timestep)
    for statement in said:
        if statement.fixed is None and place(statement.about, timestep) is not None:
            return statement.tell(timestep)
    for pipe in pipelines():
        if uncompiled(getattr(pipe, "unet", None)) is network and place(pipe, timestep) is not None:
            return of_pipeline(pipe, timestep)
    return said[0].tell(timestep) if said else UNTOLD


def of_pipeline(pipe: Any, timestep: Any) -> Told:
    """What a pipeline that is running says of its call with this timestep."""
    step, total = place(pipe, timestep) or (None, None)
    guider = getattr(pipe, "guider", None)
    weight = getattr(pipe if guider is None else guider, "guidance_scale", None)
    # guiders call the network for each half
    parts = batch_parts(pipe) if guider is None else (half_of(guider) or "conditional",)
    known = Told(step=step, total=total, apart=guider is not None, pipe=pipe, scheduler=pipe.scheduler)
    if parts is None:
        return replace(known, sure=False)
    if guider is None and parts == CONDITIONAL:
        return replace(known, branches=parts, guidance=1.0)
    return replace(known, branches=parts, guidance=float(weight) if is_number(weight) else None)


def place(pipe: Any, timestep: Any) -> tuple[int, int] | None:
    """Step and number of steps of a pipeline's run, if the timestep is one of its scheduler's, the very object."""
    run = getattr(getattr(pipe, "scheduler", None), "timesteps", None)
    if not isinstance(timestep, torch.Tensor) or not isinstance(run, torch.Tensor):
        return None
    if timestep.is_meta or timestep.untyped_storage().data_ptr() != run.untyped_storage().data_ptr():
        return None
    begin, total = course(pipe)
    step = int(timestep.storage_offset()) - int(run.storage_offset()) - begin
    return (step, total) if 0 <= step < total else None


def course(pipe: Any) -> tuple[int, int]:
    """Which of its scheduler's timesteps a pipeline's run begins with, and the number of its steps.

    Image to image begins at a later timestep, which schedulers are told; those of few kinds are not, and then the
    pipeline's number of steps tells it. A base model that hands over to a refiner (`denoising_end`) ends at an earlier
    one. What a pipeline says of its last run does not hold for a loop of one's own.
    """
    count, begin = len(pipe.scheduler.timesteps), getattr(pipe.scheduler, "begin_index", None)
    runs = running_pipeline() is pipe
    total = count_steps(pipe, count) if runs else count - (begin or 0)
    if begin is None:
        begin = 0 if getattr(pipe, "denoising_end", None) is not None else count - total
    return begin, total
