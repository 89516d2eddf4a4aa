"""Calls left out, their prediction continued from the last ones, after SADA (Jiang et al. 2025, arXiv 2507.17135)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

import torch

from ..inside.host import Host
from ..inside.same_call import BRANCHES, Noted, conditions, same_tensors, whole_key
from .feature import Feature, Inner, Options
from .options import Option

FIRST = 3
"""So many calls at the start of a run are computed: what a picture becomes is decided there."""
DECIDED = "skip: last step that was computed"


@dataclass
class _Line:
    """The last two computed predictions, and how well they foretold.

    Args:
        key: properties of the calls that a later call must share.
        conditions: the tensors that the calls were conditioned on.
        points: (timestep, prediction), the older first.
        missed: how far the continued line was from the newest prediction, as a fraction of that.
        skipped: whether the last call was left out.
    """

    key: Any
    conditions: list[Noted]
    points: list[tuple[float, torch.Tensor]] = field(default_factory=list)
    missed: float = inf
    skipped: bool = False

    def at(self, timestep: float) -> torch.Tensor | None:
        """The prediction that is on the line through both points; None where there is no line yet."""
        if len(self.points) < 2:
            return None
        (t0, e0), (t1, e1) = self.points
        return e1 + (e1 - e0) * ((timestep - t1) / (t1 - t0)) if t0 > t1 > timestep else None

    def computed(self, timestep: float, prediction: torch.Tensor) -> None:
        """Take in a computed prediction. Reads from the device where the line foretold it."""
        foretold = self.at(timestep)
        size = prediction.norm().clamp_min(1e-12)
        self.missed = inf if foretold is None else float((prediction - foretold).norm() / size)
        # Cloned, because in a compiled CUDA graph the next call overwrites that memory.
        self.points, self.skipped = [*self.points, (timestep, prediction.clone())][-2:], False


class SkippedCalls(Feature):
    """Leaves whole calls of the network out where its predictions go along a line.

    The prediction of a call that is left out lies on the line, over the timestep, through the last two that were
    computed. A call is left out if the last computed prediction was foretold so to within the threshold, and if the
    call before was computed: never two in a row, and none of the first three. SADA decides by the curvature of the
    trajectory and continues by higher orders; this is its rule in its simplest form.

    Calls with other conditions, shapes or scales of LoRAs than the last ones, with gradients, in training, and where
    timesteps rise or stay, are computed. All calls of a step follow the first, and so do all pictures of a batch: what
    is left out is decided by the whole batch's error. Each computed call reads a number from the device.

    Options:
        skip_threshold: the largest error, as a fraction of the prediction (root mean squares). 0 switches it off.
    """

    name = "skip"
    approximates: ClassVar[bool] = True
    options: ClassVar[dict[str, Option]] = {
        "skip_threshold": Option(
            0.0,
            float,
            "a call is left out, and its prediction continued, where that missed the last one by less than this "
            "fraction, such as 0.1 (after SADA, arXiv 2507.17135)",
            lambda value: 0 <= value <= 1,
            "a fraction from 0 (off) to 1",
        ),
    }

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.threshold: float = options["skip_threshold"]

    def takes(self) -> Mapping[tuple[str, str], str]:
        """Everything, at some steps."""
        return {("computation at every step", "mid_block"): "skip_threshold"}

    def forward(
        self, inner: Inner, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any
    ) -> torch.Tensor:
        unet, call, memory = self.host, self.host.call, self.host.memory
        assert call is not None  # this feature runs where steps are counted
        inputs = sample, timestep, encoder_hidden_states
        if unet.training or torch.is_grad_enabled():
            unet.say_once("no call is left out in training and with gradients (use torch.no_grad())")
            return inner(*inputs, **kwargs)
        if call.branch >= BRANCHES:
            return inner(*inputs, **kwargs)
        lines: dict[int, _Line] = memory.setdefault(self.name, {})
        line, key = lines.get(call.branch), whole_key(unet, sample, kwargs)
        now = conditions(encoder_hidden_states, kwargs)
        if line is None or call.rises or line.key != key or not same_tensors(now, line.conditions):
            line = lines[call.branch] = _Line(key, list(map(Noted.of, now)))
        # Guidance uses differences between a step's calls, so all are computed or none.
        decided = call.branch > 0 and memory.get(DECIDED) == call.step
        if call.step >= FIRST and not decided and not line.skipped and line.missed < self.threshold:
            foretold = line.at(call.timestep)
            if foretold is not None:
                line.skipped = True
                return foretold
        memory[DECIDED] = call.step
        prediction = inner(*inputs, **kwargs)
        line.computed(call.timestep, prediction)
        return prediction
