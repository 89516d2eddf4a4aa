"""Schedule-free optimizers (Defazio et al. 2024, arXiv 2405.15682): switching between trained and averaged weights.

Such an optimizer keeps two sets of weights: those at which gradients are taken, and their average, which is the result.
Its methods `train` and `eval` put one or the other into the model. All functions here do nothing for other optimizers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sd_ext.seams.accelerate import inner_optimizer


def averages(optimizer: Any) -> bool:
    """Whether it keeps an average of the weights by itself."""
    return callable(getattr(inner_optimizer(optimizer), "eval", None))


def to_training(optimizer: Any) -> None:
    """Put the weights at which gradients are taken into the model."""
    switch = getattr(inner_optimizer(optimizer), "train", None)
    if callable(switch):
        switch()


def to_evaluation(optimizer: Any) -> None:
    """Put the averaged weights, which are the result, into the model."""
    switch = getattr(inner_optimizer(optimizer), "eval", None)
    if callable(switch):
        switch()


@contextlib.contextmanager
def evaluating(optimizer: Any) -> Iterator[None]:
    """A context in which the model has the averaged weights; afterwards its weights are restored bit for bit.

    `to_evaluation` and `to_training` undo each other only up to rounding. Without the exact copy made here, a run with
    previews would give another result than one without, and processes that make previews would differ from the others.
    """
    import torch

    groups = inner_optimizer(optimizer).param_groups if averages(optimizer) else []
    weights = [p for group in groups for p in group["params"]]
    before = [p.detach().clone() for p in weights]
    to_evaluation(optimizer)
    try:
        yield
    finally:
        to_training(optimizer)
        with torch.no_grad():
            for p, value in zip(weights, before, strict=True):
                p.copy_(value)
