"""The interface of one kind of training: what `sd_ext.training.run.fit.fit` calls to train it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from sd_ext.errors import InputError
from sd_ext.training.data.order import Pass
from sd_ext.training.run.by_weight import WeightByWeight
from sd_ext.training.run.early import StopSettings


class Task:
    """One kind of training: its samples, the module that computes the loss, validation, previews, and the result.

    Attributes:
        name: shown to the user, and recorded in the run's folder.
        model: the module to train; its parameters that require gradients are. Called with the arguments from `batch`,
            it returns means over the batch by name, of which "loss" is minimised. Set by `begin` at the latest.
        sizes: the size of each sample; only samples of equal size share a pass.
        ratios: part of a parameter name, between dots -> factor of the learning rate of these parameters.
        stops: part of a parameter name, between dots -> the step from which on these parameters are not trained.
        parts: digests of what the run depends on beside its settings, such as the data, by name. A run can be resumed
            only if they are the same.
        early: whether the run ends by its validations.
    """

    name: str
    model: nn.Module
    sizes: Sequence[Hashable]
    ratios: dict[str, float] = {}  # noqa: RUF012  # never changed in place
    stops: dict[str, int] = {}  # noqa: RUF012
    parts: dict[str, str] = {}  # noqa: RUF012
    early: StopSettings = StopSettings()

    def begin(self, accelerator: Accelerator) -> None:
        """Load the models, and fill the cache; called once by every process, before training."""

    def start_from(self, source: str) -> None:
        """Begin with the weights of a file; called once, after `begin`, if the setting `from` names no run.

        Raises:
            InputError: the file does not fit, or this kind of training starts from runs only.
        """
        raise InputError(f"--from {source}: that is no run, and a run of the {self.name} starts from no file")

    def arrange(self) -> None:
        """Change the memory layout of the model's weights to the fastest one; called once, after `begin`."""
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def watch(self, ema: Any) -> None:
        """Get the averaged weights (`Ema`), or None if there are none; called once, before training."""

    def stepper(self, optimizer: torch.optim.Optimizer) -> WeightByWeight | None:
        """What steps the optimizer for one weight at a time, or None; called once, before training."""
        return None

    def read(self, each: Pass) -> Any:
        """Read the data of a pass from disk; called in threads, ahead of training. The result is passed to `batch`."""
        return None

    def batch(self, each: Pass, read: Any, device: torch.device) -> tuple:
        """The arguments of `model` for a pass.

        Args:
            each: the pass.
            read: the result of `read` for this pass.
            device: the device to put tensors on.
        """
        raise AssertionError("every task makes its own batches")

    def names(self, each: Pass) -> str:
        """The names of a pass's samples, for messages."""
        return ", ".join(map(str, each.samples))

    def after(self, step: int) -> None:
        """Called before each step, and after a checkpoint was loaded; `step` is the number of steps done."""

    def validate(self) -> dict[str, float]:
        """Metrics on held-out samples, with the same random numbers each time; empty if there are none."""
        return {}

    def preview(self) -> Image.Image | None:
        """A contact sheet that shows what the model does at present; None for no preview."""
        return None

    def notes(self) -> dict[str, Any]:
        """What a result tells of the run beside its settings, as JSON values; kept in every checkpoint."""
        return {}

    def export(self, new: Path, history: list[dict[str, float]], step: int, last: bool) -> None:
        """Save what is trained, at the end of the run or before.

        Args:
            new: an empty folder to write into.
            history: the entries of the log, see `History`.
            step: the number of steps done.
            last: whether the run is complete; only then pictures need to be drawn.
        """
        raise AssertionError("every task saves its own result")
