"""Schedule-free optimizers (Defazio et al. 2024, arXiv 2405.15682): weights for gradients, and their average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sd_ext.seams.accelerate import inner_optimizer


def to_training(optimizer: Any) -> None:
    """Bring the weights of a schedule-free optimizer to where gradients are taken; nothing for others."""
    switch = getattr(inner_optimizer(optimizer), "train", None)
    if callable(switch):
        switch()


def to_evaluation(optimizer: Any) -> None:
    """Bring the weights of a schedule-free optimizer to the average, which is the result; nothing for others."""
    switch = getattr(inner_optimizer(optimizer), "eval", None)
    if callable(switch):
        switch()


@contextlib.contextmanager
def evaluating(optimizer: Any) -> Iterator[None]:
    """Within, a schedule-free optimizer's weights are the average; after, they are what they were, bit for bit.

    `to_evaluation` and `to_training` undo each other up to rounding only: a run with previews would end elsewhere than
    the same run without, and a process that previews elsewhere than one that does not.
    """
    import torch

    switches = callable(getattr(inner_optimizer(optimizer), "eval", None))
    weights = [p for group in inner_optimizer(optimizer).param_groups for p in group["params"]] if switches else []
    before = [p.detach().clone() for p in weights]
    to_evaluation(optimizer)
    try:
        yield
    finally:
        to_training(optimizer)
        with torch.no_grad():
            for p, value in zip(weights, before, strict=True):
                p.copy_(value)
