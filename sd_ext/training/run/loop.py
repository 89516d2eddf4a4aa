"""The training loop. It trains and yields metrics; the caller logs, makes previews and saves.

One optimizer step is a few forward and backward passes, gradient clipping, the optimizer's step, and an update of the
averaged weights. A step's loss is the mean over its samples, however they are divided into passes and processes. All
random numbers are seeded by (seed, step), so the result of a run depends on its settings only.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sd_ext.errors import TrainingError
from sd_ext.seams.accelerate import inner_optimizer
from sd_ext.seams.torch import lerp_all
from sd_ext.training.data.draws import Stream, stream_generator
from sd_ext.training.data.order import Pass
from sd_ext.training.optimizer.schedules import learning_rate
from sd_ext.training.run.by_weight import WeightByWeight
from sd_ext.training.run.config import RunConfig

Batches = Callable[[int], Iterator[list[tuple[Pass, tuple]]]]


class Ema:
    """An exponential moving average of a model's trained weights, in float32.

    average <- d average + (1 - d) weights, with d = min(decay, (1 + step) / (10 + step)): d is smaller at the start of
    a run, so that the early weights are soon forgotten.

    Args:
        model: the model; the parameters that require gradients are averaged.
        decay: largest d, from 0 up to, not including, 1.

    Attributes:
        average: the averages, by parameter name.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.source = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.begin()

    def begin(self) -> None:
        """Make the averages the present weights."""
        self.average = {name: p.detach().float().clone() for name, p in self.source.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the current weights into the average; `step` is the number of optimizer steps done."""
        decay = min(self.decay, (1 + step) / (10 + step))
        lerp_all(list(self.average.values()), [p.float() for p in self.source.values()], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model's weights are the averages; afterwards they are restored bit for bit."""
        weights = {name: p.detach().clone() for name, p in self.source.items()}
        self._set(self.average)
        try:
            yield
        finally:
            self._set(weights)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, p in self.source.items():
            p.copy_(values[name])


@dataclass
class Run:
    """Everything the training loop works on. Checkpoints store its weights, optimizer state, averages and step.

    Args:
        config: the settings.
        accelerator: accelerate's device, precision and processes.
        model: computes the loss: `model(*batch)` returns a dictionary of means over the batch, of which "loss" is
            minimised.
        optimizer: the optimizer of the trained weights. The learning rate of a group is multiplied by its "ratio",
            and it is not trained from step "until" on, if the group has these entries.
        batches: `batches(first)` yields, for each of the steps `first`, `first + 1`, ..., this process's list of
            (pass, arguments of `model`).
        ema: the averaged weights; None for no averaging.
        names: names the samples of a pass, for messages.
        notes: see `Task.notes`.
        stepper: steps the optimizer for one weight at a time; None for all at once.
        step: optimizer steps done so far.
        last_checkpoint: path of the last checkpoint, for messages.
        best: the step whose checkpoint is kept as the best; 0 for none.
    """

    config: RunConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    ema: Ema | None = None
    names: Callable[[Pass], str] = str
    notes: Mapping[str, Any] = field(default_factory=dict)
    stepper: WeightByWeight | None = None
    step: int = 0
    last_checkpoint: str = field(default="none")
    best: int = 0


def check_finite(run: Run, values: dict[str, float], passes: list[Pass]) -> None:
    """Stop the run if a value is not finite.

    Args:
        run: the run.
        values: name for the message -> value.
        passes: this process's passes of the step, whose samples the message names.

    Raises:
        TrainingError: a value is infinite or NaN.
    """
    for what, value in values.items():
        if not math.isfinite(value):
            samples = "; ".join(run.names(each) for each in passes)
            raise TrainingError(
                f"the {what} is {value} at step {run.step + 1} (samples: {samples}); "
                f"last good checkpoint: {run.last_checkpoint}. {advice(run)}"
            )


def advice(run: Run) -> str:
    """How to go on after a loss that is not finite: what to add to the command."""
    out, rate = run.config.folder.out, run.config.rate.learning_rate / 2
    bf16 = " --mixed-precision bf16" if run.config.machine.mixed_precision == "fp16" else ""
    changed = f"--learning-rate {rate:g}{bf16} --out {shlex.quote(f'{out.rstrip(os.sep)}-2')}"
    if run.last_checkpoint == "none":
        return f"To begin again more slowly, add: {changed}"
    step = int(run.last_checkpoint.rpartition("-")[2])
    return f"To go on from there more slowly, add: --from {shlex.quote(f'{out}@{step}')} {changed}"


def backward(run: Run, work: list[tuple[Pass, tuple]]) -> dict[str, Tensor]:
    """Run the passes of one step in this process, and add up their gradients.

    Args:
        run: the run.
        work: (pass, arguments of the model) for each pass.

    Returns:
        This process's part of the step's metrics: the means of its passes, each times the pass's share. The sum over
        all processes is the mean over the step's samples.
    """
    accelerator, sums = run.accelerator, {}
    for number, (each, batch) in enumerate(work):
        dropout = stream_generator(run.config.loop.seed, Stream.DROPOUT, each.step, each.positions[0])
        torch.random.manual_seed(dropout.initial_seed())
        last = number == len(work) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            losses = run.model(*batch)
            # accelerate averages the gradients of the processes, but shares refer to the samples of all of them
            accelerator.backward(losses["loss"] * (each.share * accelerator.num_processes))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach().float() * each.share
    return sums


def stop_finished(run: Run) -> None:
    """Take the gradients of groups whose training has ended ("until"): no optimizer touches them, whatever its rate."""
    for group in inner_optimizer(run.optimizer).param_groups:
        if run.step >= group.get("until", math.inf):
            for p in group["params"]:
                p.grad = None


def train(run: Run) -> Iterator[dict[str, float]]:
    """Train from `run.step` to the last step.

    Yields:
        The metrics of each optimizer step, after it is done: means over the step's samples, the learning rate "lr",
        and "gradient_norm", the norm before clipping.

    Raises:
        TrainingError: a loss or gradient is not finite; the weights are still those of the step before.
    """
    settings, accelerator = run.config.loop, run.accelerator
    trained = [p for p in run.model.parameters() if p.requires_grad]
    run.model.train()
    batches = run.batches(run.step)
    while run.step < settings.steps:
        work = next(batches)
        rate = learning_rate(run.config.rate, run.step, settings.steps)
        for group in inner_optimizer(run.optimizer).param_groups:
            group["lr"] = rate * group.get("ratio", 1.0)
        if run.stepper:
            run.stepper.step_number = run.step
        sums = backward(run, work)
        stop_finished(run)
        names, passes = list(sums), [each for each, _ in work]
        reduced = accelerator.reduce(torch.stack([sums[name] for name in names]), "sum")
        fused = run.stepper if run.stepper and run.stepper.fused else None  # then the weights are stepped already
        norm = fused.norm() if fused else accelerator.clip_grad_norm_(trained, settings.clip or math.inf)
        *values, norm = torch.cat([reduced, torch.as_tensor(norm).reshape(1).to(reduced)]).tolist()  # one wait a step
        metrics: dict[str, float] = {"lr": rate, **dict(zip(names, values, strict=True)), "gradient_norm": norm}
        check_finite(run, {"loss": metrics["loss"]}, passes)
        if accelerator.scaler is None:  # in float16 the gradient scaler skips steps whose gradients overflow
            check_finite(run, {"gradient's norm": norm}, passes)
        if run.stepper is None:
            run.optimizer.step()
        elif not fused:
            run.stepper.step()
        run.optimizer.zero_grad()
        run.step += 1
        if run.ema:
            run.ema.update(run.step)
        yield metrics
