"""What the zoo knows about one pipeline."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import BaseOutput

from . import components


@dataclass(frozen=True)
class Entry:
    """A Diffusers pipeline with tiny random networks.

    Args:
        name: its class, and in brackets the way it is used where there are several.
        family: heading under which it is listed.
        build: makes it, with Diffusers' own scheduler. Networks may be shared with other entries.
        run: (pipe, steps, seed) to a result; every draw with the seed's generator where the pipeline takes one.
        expected: steps asked for, to evaluations of the network that the pipeline then makes.
        networks: the parts whose evaluations are counted, by dotted names.
        scheduler: the part that samplers are put in place of, by its dotted name.
        refused: why no scheduler but Diffusers' own can work; empty where others can.
    """

    name: str
    family: str
    build: Callable[[], Any]
    run: Callable[[Any, int, int], torch.Tensor]
    expected: Callable[[int], int]
    networks: tuple[str, ...] = ("unet",)
    scheduler: str = "scheduler"
    refused: str = ""

    def get_scheduler(self, pipe: Any) -> Any:
        return operator.attrgetter(self.scheduler)(pipe)

    def set_scheduler(self, pipe: Any, scheduler: Any) -> None:
        *owner, attribute = self.scheduler.rsplit(".", 1)
        setattr(operator.attrgetter(owner[0])(pipe) if owner else pipe, attribute, scheduler)


@dataclass(frozen=True)
class Broken:
    """A pipeline that fails here whatever its scheduler.

    Args:
        name, family: as in `Entry`.
        attempt: does what fails, with Diffusers' own scheduler.
        reason: why, in words.
        message: part of the error that `attempt` raises.
    """

    name: str
    family: str
    attempt: Callable[[], Any]
    reason: str
    message: str


def assemble(name: str | type, pool: dict[str, Callable[[], Any]], **parts: Any) -> Any:
    """The pipeline of this name or class, with the parts that its constructor names: given ones, then the pool's.

    Parts that neither has are None where the constructor has no default, as in pipelines without a safety checker.
    """
    cls = getattr(diffusers, name) if isinstance(name, str) else name
    chosen = {}
    for key, parameter in inspect.signature(cls.__init__).parameters.items():
        if key in parts:
            chosen[key] = parts[key]
        elif key in pool:
            chosen[key] = pool[key]()
        elif key == "requires_safety_checker":
            chosen[key] = False
        elif key != "self" and parameter.default is inspect.Parameter.empty:
            chosen[key] = None
    pipe = cls(**chosen)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tensor(result: Any) -> torch.Tensor:
    """The first output of a pipeline as one float tensor."""
    if isinstance(result, BaseOutput):  # some return one for latents even when asked for a tuple
        return tensor(result.to_tuple())
    if isinstance(result, tuple):
        return tensor(result[0])
    if isinstance(result, torch.Tensor):
        return result.detach().float()
    if isinstance(result, list):
        return torch.stack([tensor(part) for part in result])
    return torch.from_numpy(np.asarray(result, dtype=np.float32))


def whole(steps: int) -> int:
    """One evaluation a step."""
    return steps


def share(fraction: float) -> Callable[[int], int]:
    """Runs that start in the middle: the share of the steps that is made, as img2img pipelines round it."""
    return lambda steps: min(int(steps * fraction), steps)


def entry(
    name: str,
    family: str,
    pool: dict[str, Callable[[], Any]],
    arguments: dict[str, Any],
    expected: Callable[[int], int] = whole,
    parts: Callable[[], dict[str, Any]] = dict,
    cls: Callable[[], type] | None = None,
    **more: Any,
) -> Entry:
    """An entry for a pipeline that is called in the ordinary way.

    Args:
        arguments: what it is called with, besides the steps and the generator. Callables are called first, so that
            nothing is built on import.
        parts: components that differ from the pool's.
        cls: gives the class, if Diffusers does not export it.
    """

    def run(pipe: Any, steps: int, seed: int) -> torch.Tensor:
        own = {key: value() if callable(value) else value for key, value in arguments.items()}
        own = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), **own}
        return tensor(pipe(**own, return_dict=False))

    def build() -> Any:
        return assemble(cls() if cls else name.split(" (")[0], pool, **parts())

    return Entry(name, family, build, run, expected, **more)


PROMPT = {"prompt": "a b", "output_type": "latent"}
IMAGE = {**PROMPT, "image": components.picture}
