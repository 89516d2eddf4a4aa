"""One cell of the table pipelines x samplers: does this pipeline run as it should with this scheduler?"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

import sd_ext
from sd_ext.attaching import attach, detach
from sd_ext.board import BOARD

from .entry import Entry

STEPS = 5


@dataclass(frozen=True)
class Problem:
    """What went wrong in a cell.

    Args:
        kind: name of the exception, or "not finite", "calls" or "not repeatable".
        message: the exception's, or what was seen.
    """

    kind: str
    message: str


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings, log lines and progress bars of pipelines."""
    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers.utils.logging.set_verbosity(level)


@contextlib.contextmanager
def counted(pipe: Any, networks: tuple[str, ...]) -> Iterator[Callable[[], int]]:
    """How often these parts of the pipeline were evaluated so far."""
    seen: list[int] = []
    handles = [operator.attrgetter(name)(pipe).register_forward_hook(lambda *_: seen.append(1)) for name in networks]
    try:
        yield lambda: len(seen)
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def attached(pipe: Any, networks: tuple[str, ...], scheduler: Any) -> Iterator[None]:
    """Where the scheduler weighs both halves of guided predictions, these parts of the pipeline leave them."""
    parts = [operator.attrgetter(name)(pipe) for name in networks if getattr(scheduler, "needs_halves", False)]
    for part in parts:
        attach(part)
    try:
        yield
    finally:
        for part in parts:
            detach(part)
        BOARD.notes.clear()


def result(entry: Entry, pipe: Any, steps: int) -> torch.Tensor:
    """With every draw seeded, also those that some pipelines leave to torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return entry.run(pipe, steps, 0)


def problem_of(entry: Entry, pipe: Any, scheduler: Any, steps: int = STEPS) -> Problem | None:
    """None if the pipeline gives finite numbers, the same ones for the same seed, with the evaluations asked for."""
    try:
        with quiet():
            entry.set_scheduler(pipe, scheduler)
            with attached(pipe, entry.networks, scheduler):
                with counted(pipe, entry.networks) as calls:
                    first = result(entry, pipe, steps)
                    made = calls()
                again = result(entry, pipe, steps)
    except Exception as error:
        return Problem(type(error).__name__, str(error).strip())
    if not torch.isfinite(first).all():
        return Problem("not finite", "the result has numbers that are not finite")
    if made != entry.expected(steps):
        return Problem("calls", f"{made} network evaluations in place of {entry.expected(steps)}")
    if not torch.equal(first, again):
        return Problem("not repeatable", f"the same seed gives results {float((first - again).abs().max()):.1g} apart")
    return None


class Unguided(logging.Handler):
    """Notices that a sampler of two fields has said that there is no guidance."""

    LOG = logging.getLogger("sd_ext.schedulers.announced")

    def __init__(self) -> None:
        super().__init__()
        self.said = False

    def emit(self, record: logging.LogRecord) -> None:
        self.said = self.said or "here there is no guidance" in record.getMessage()

    def __enter__(self) -> Unguided:
        self.LOG.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.LOG.removeHandler(self)


class Bench:
    """A pipeline to try schedulers in: built once, and anew after a failure, which may leave it in any state."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self._pipe: Any = None
        self.config = self._ready().config

    def _ready(self) -> Any:
        """The pipeline's own scheduler."""
        if self._pipe is None:
            with quiet():
                self._pipe = self.entry.build()
            self._own = self.entry.get_scheduler(self._pipe)
        return self._own

    def _problem(self, make: Callable[[], Any], steps: int) -> Problem | None:
        self._ready()
        try:
            scheduler = make()
        except Exception as error:
            return Problem(type(error).__name__, str(error).strip())
        problem = problem_of(self.entry, self._pipe, scheduler, steps)
        if problem is not None:
            self._pipe = None
        return problem

    def own(self, steps: int = STEPS) -> Problem | None:
        """The control: the scheduler that the pipeline comes with."""
        return self._problem(self._ready, steps)

    def diffusers(self, name: str, steps: int = STEPS, **options: Any) -> Problem | None:
        """One of Diffusers' schedulers, in the place of the pipeline's own."""

        def make() -> Any:
            with quiet():
                return getattr(diffusers, name).from_config(self.config, **options)

        return self._problem(make, steps)

    def sampler(self, name: str, steps: int = STEPS, **options: Any) -> Problem | None:
        """One of sd_ext's samplers."""
        return self._problem(lambda: sd_ext.make_scheduler(name, self.config, **options), steps)

    def halves(self, name: str) -> str:
        """What a sampler of two fields finds here: "both" halves of guided predictions, "one" prediction where there
        is no guidance, or why it does not run.
        """
        with Unguided() as unguided:
            problem = self.sampler(name)
        return f"{problem.kind}: {problem.message}" if problem else "one" if unguided.said else "both"
