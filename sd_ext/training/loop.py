"""The training loop: it trains and yields metrics; the caller logs, previews and saves.

One optimizer step is `accumulation` forward and backward passes, a clipped gradient, AdamW, and an update of the
averaged weights. Everything random in pass b comes from (seed, b), so a run is a function of its settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sd_ext.errors import TrainingError
from sd_ext.training.configs import RunConfig


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of a step: a linear rise over `warmup` steps, then the schedule, down to 0 at `steps`."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if config.lr_schedule == "cosine" else 1 - done)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: weight decay for matrices and kernels, none for biases, norms and other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Ema:
    """An exponential moving average of a model's trained weights, in float32.

    average <- d average + (1 - d) weights, with d = min(decay, (1 + step) / (10 + step)) so that early steps, far from
    the result, are forgotten quickly.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.source = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self.source.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), [p.float() for p in self.source.values()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; twice is nothing."""
        for name, p in self.source.items():
            weights = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name].copy_(weights)


@dataclass
class Run:
    """The state of a run: what a checkpoint holds, beside the settings.

    Args:
        config: its settings.
        accelerator: devices and precision.
        model: computes the loss: `model(*batch)` returns a dictionary of scalars, of which "loss" is minimised.
        optimizer: AdamW on the model's trained weights.
        batches: `batches(first)` yields the arguments of passes `first`, `first + 1`, ...
        step: optimizer steps done.
    """

    config: RunConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int], Iterator[tuple]]
    ema: Ema | None = None
    step: int = 0
    last_checkpoint: str = field(default="none")


def check_finite(run: Run, loss: Tensor, what: str) -> float:
    """The loss as a number; stops the run when it is not finite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is {value} at step {run.step + 1}; last good checkpoint: {run.last_checkpoint}. "
            "Lower the learning rate, or use bf16 in place of fp16, and resume from there"
        )
    return value


def train(run: Run) -> Iterator[dict[str, float]]:
    """Train from `run.step` to `config.steps`, yielding the metrics of each optimizer step after it is done.

    Metrics are means over the step's passes and over processes, with "gradient_norm" before clipping and "lr".

    Raises:
        TrainingError: a loss or gradient is not finite; the weights are still those of the step before.
    """
    config, accelerator = run.config, run.accelerator
    batches = run.batches(run.step * config.accumulation)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    run.model.train()
    while run.step < config.steps:
        rate = learning_rate(config, run.step)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, Tensor] = {}
        metrics: dict[str, float] = {"lr": rate}
        for number in range(run.step * config.accumulation, (run.step + 1) * config.accumulation):
            torch.manual_seed((config.seed * 1_000_003 + number) % 2**63)  # dropout inside the model, if any
            with accelerator.accumulate(run.model):
                losses = run.model(*next(batches))
                check_finite(run, losses["loss"], "loss")
                accelerator.backward(losses["loss"])
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(trained, config.clip or math.inf)
                    if config.mixed_precision != "fp16":  # there the loss scale answers to overflow
                        metrics["gradient_norm"] = check_finite(run, norm, "gradient's norm")
                run.optimizer.step()
                run.optimizer.zero_grad()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / config.accumulation
        run.step += 1
        if run.ema:
            run.ema.update(run.step)
        metrics |= {name: float(accelerator.reduce(value, "mean")) for name, value in totals.items()}
        yield metrics
