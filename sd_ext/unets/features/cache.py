"""Reuse of deep features from step to step, after DeepCache (Ma, Fang, Wang 2023, arXiv 2312.00858)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...errors import InputError
from ..inside import views
from ..inside.host import Host
from ..inside.same_call import BRANCHES, Noted, conditions, same_tensors, whole_key
from ..inside.steps import Call
from ..inside.told import Told
from ..inside.views import Cut, Replay
from . import cache_schedule
from .feature import Feature, Inner, Options
from .options import Option

WHOLE = "cache: last step that ran whole"


class _Changed(Exception):
    """Raised to end a shallow pass once its features differ too much from the stored ones, or once they are known."""


@dataclass
class _Entry:
    """What is stored of a pass through the whole network.

    Args:
        deep: the deep part's output, `(batch, channels, height, width)`.
        key: properties of the call that a later call must share.
        conditions: the tensors that the call was conditioned on; a later call's must have equal content.
        near: the deep part's input, for the schedule "threshold"; otherwise None.
    """

    deep: torch.Tensor
    key: Any
    conditions: list[Noted]
    near: torch.Tensor | None


class DeepFeatureCache(Feature):
    """Computes the deep part of the network only at some steps, and reuses its last output in between.

    The shallow part runs at every step, so the picture follows the latents. The whole network runs where reuse is
    impossible: if the shape, dtype, device, conditions, masks or the scale of a LoRA or IP-Adapter have changed, and
    with T2I-Adapter, GLIGEN, gradients, training, or layers offloaded in groups. Reuse works with ControlNet,
    IP-Adapter, LoRA, guidance in one batch or in separate calls, samplers with several calls a step, and offloading of
    whole models.

    Options:
        cache_interval: N; the whole network runs at every N-th step. 1 switches the feature off.
        cache_depth, cache_layer: where the network is divided, see `views`. A deeper cut is slower and closer to the
            exact picture. None uses the default of the model's family, see `family_cut`.
        cache_schedule: the steps at which the whole network runs, see `cache_schedule.is_full`. "sampler" takes them
            from the `whole_calls` of the scheduler that the run is made with, as a calibration with `whole_share` has
            found them; where it names none, every step runs whole.
        cache_threshold: for the schedule "threshold", which does not use N. The whole network runs if the features at
            the cut differ from those at its last run by more than this fraction of their mean absolute value. The first
            call of a step decides for the step's other calls. Each decision reads a number from the device; the other
            schedules never wait for it. 0 switches the feature off.
    """

    name = "cache"
    approximates: ClassVar[bool] = True
    options: ClassVar[dict[str, Option]] = {
        "cache_interval": Option(
            1,
            int,
            "the whole network runs every so many steps (DeepCache, arXiv 2312.00858)",
            lambda value: value >= 1,
            "a whole number from 1 on",
        ),
        "cache_depth": Option(
            None, int | None, "where it is cut: deeper is slower and closer to the exact picture; None is the family's"
        ),
        "cache_layer": Option(None, int | None, "the same, within the depth"),
        "cache_schedule": Option(
            "uniform",
            str | list[int],
            '"uniform", "front-loaded", a list of the steps that run whole, "threshold", or "sampler": as the '
            "calibrated sampler says",
        ),
        "cache_threshold": Option(
            0.0,
            float,
            'for "threshold" alone: the relative change of the features, such as 0.2, that asks for a whole step',
        ),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        schedule = options["cache_schedule"]
        if schedule == "threshold":
            return options["cache_threshold"] == 0
        interval = options["cache_interval"]
        return interval == 1 and schedule in ("uniform", "front-loaded")

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.interval, self.schedule = options["cache_interval"], options["cache_schedule"]
        cache_schedule.check(self.schedule, options["cache_threshold"])
        self.threshold = options["cache_threshold"] if self.schedule == "threshold" else None
        self.cut = chosen_cut(host, options)

    def takes(self) -> Mapping[tuple[str, str], str]:
        """The deep part, which is not computed at every step."""
        on = "cache_interval" if self.interval != 1 else "cache_schedule"
        return {("computation at every step", "mid_block"): on}

    def _is_planned(self, call: Call, told: Told) -> bool:
        """Whether the schedule lets the whole network run at this step."""
        if self.schedule != "sampler":
            return cache_schedule.is_full(self.schedule, self.interval, call.step)
        named = getattr(told.scheduler, "whole_calls", None)
        if named is None:
            self.host.say_once(
                'cache_schedule "sampler" reuses nothing: the scheduler of this run names no calls that are whole, as '
                "one does that was calibrated with whole_share"
            )
        return named is None or cache_schedule.is_full(named, 1, call.step)

    def forward(
        self, inner: Inner, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any
    ) -> torch.Tensor:
        unet, call, memory = self.host, self.host.call, self.host.memory
        assert call is not None  # this feature runs where steps are counted
        entries: dict[int, _Entry] = memory.setdefault(self.name, {})
        reason = _obstacle(unet, kwargs)
        if reason is not None:
            unet.say_once(f"the cache is not used and the exact network runs: {reason}")
            entries.pop(call.branch, None)
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        step = _Step(self, call, inner, (sample, timestep, encoder_hidden_states), kwargs)
        entry = entries.get(call.branch)
        planned = self._is_planned(call, unet.told)
        # Guidance uses differences between a step's calls, so their features should come from the same step.
        whole = planned or call.exact or call.rises or memory.get(WHOLE) == call.step
        if entry is not None and not whole and step.fits(entry):
            prediction = step.shallow(entry)
            if prediction is not None:
                return prediction
        prediction, entry = step.whole()
        memory[WHOLE] = call.step
        if call.branch < BRANCHES:
            entries[call.branch] = entry
        return prediction


class _Step:
    """One call of the network, which can be computed in two ways: `shallow` or `whole`."""

    def __init__(
        self,
        cache: DeepFeatureCache,
        call: Call,
        inner: Inner,
        inputs: tuple[Any, Any, Any],
        kwargs: dict[str, Any],
    ):
        self.inner, self.inputs, self.kwargs = inner, inputs, kwargs
        self.call, self.model = call, call.model
        self.cut, self.threshold = cache.cut, cache.threshold
        self.key = whole_key(cache.host, inputs[0], kwargs)
        self.conditions = conditions(inputs[2], kwargs)

    def fits(self, entry: _Entry) -> bool:
        """Whether the stored features can be reused in this call, as far as its properties and conditions go."""
        return self.key == entry.key and same_tensors(self.conditions, entry.conditions)

    def shallow(self, entry: _Entry) -> torch.Tensor | None:
        """Compute the prediction with the stored output of the deep part.

        Returns:
            The prediction; None if the features have changed by more than the threshold.
        """

        def check(near: torch.Tensor) -> None:
            if self.threshold is not None and relative_change(near, entry.near) > self.threshold:
                raise _Changed

        see = None if self.threshold is None or self.call.branch else check
        self.call.model = views.shallow(self.model, self.cut, Replay(entry.deep, see))
        self.call.eager = see is not None
        try:
            return self.inner(*self.inputs, **{**self.kwargs, **self._control()})
        except _Changed:
            return None
        finally:
            self.call.model, self.call.eager = self.model, False

    def whole(self) -> tuple[torch.Tensor, _Entry]:
        """Compute the exact prediction. Returns it and what to store of the pass."""
        near = None if self.threshold is None else self._near()
        self.call.model, capture = views.capturing(self.model, self.cut)
        try:
            prediction = self.inner(*self.inputs, **self.kwargs)
        finally:
            self.call.model = self.model
        # Cloned, because in a compiled CUDA graph the next call overwrites that memory.
        return prediction, _Entry(capture.kept.clone(), self.key, list(map(Noted.of, self.conditions)), near)

    def _near(self) -> torch.Tensor:
        """The input of the deep part; only the shallow part before it is computed."""
        seen: list[torch.Tensor] = []

        def stop(near: torch.Tensor) -> None:
            seen.append(near)
            raise _Changed

        self.call.model, self.call.eager = views.shallow(self.model, self.cut, Replay(None, stop)), True
        try:
            self.inner(*self.inputs, **self.kwargs)
        except _Changed:
            pass
        finally:
            self.call.model, self.call.eager = self.model, False
        return seen[0]

    def _control(self) -> dict[str, Any]:
        """Arguments that keep ControlNet's mid-block residual from being added a second time.

        The stored deep output contains that residual already, unless the deep part ends with the mid block.
        """
        residual = self.kwargs.get("mid_block_additional_residual")
        if residual is None or views.ends_at_mid(self.model, self.cut):
            return {}
        return {"mid_block_additional_residual": residual.new_zeros(())}


def family_cut(unet: Host) -> Cut:
    """The default cut for a model family: by measurement, the fastest one whose pictures stay close to the exact ones.

    In SD 1.x and 2.x, 7.9% of the work lies before the first cut. In SDXL, whose first block has no attention, it is
    1.5%, too little to follow the latents; one block deeper it is 12.9%.
    """
    return Cut(0, 0) if hasattr(unet.down_blocks[0], "attentions") or len(unet.down_blocks) < 2 else Cut(1, 0)


def chosen_cut(unet: Host, options: Options) -> Cut:
    """The cut that the options ask for. Raises `InputError` if the model does not have it."""
    possible = views.cuts(unet)
    if not possible:
        kinds = sorted({type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)})
        raise InputError(f"features of this model cannot be cached: its blocks are {', '.join(kinds)}")
    default, depth, layer = family_cut(unet), options["cache_depth"], options["cache_layer"]
    _check_one_of("cache_depth", depth, sorted({cut.depth for cut in possible}))
    depth = default.depth if depth is None else depth
    _check_one_of("cache_layer", layer, [cut.layer for cut in possible if cut.depth == depth], f" at depth {depth}")
    return Cut(depth, default.layer if layer is None else layer)


def _check_one_of(name: str, value: Any, allowed: list[int], where: str = "") -> None:
    if value is not None and value not in allowed:
        raise InputError(f"{name} must be {allowed[0]} to {allowed[-1]} for this model{where}, or None, got {value!r}")


def relative_change(now: torch.Tensor, before: torch.Tensor | None) -> float:
    """Mean absolute difference divided by the mean absolute value; infinite if `before` is None.

    Reads from the device.
    """
    if before is None:
        return float("inf")
    return float((now - before).abs().mean() / before.abs().mean().clamp_min(1e-12))


def _obstacle(unet: Host, kwargs: dict[str, Any]) -> str | None:
    """Why this call cannot reuse features, as a clause for a message; None if it can."""
    down, mid = kwargs.get("down_block_additional_residuals"), kwargs.get("mid_block_additional_residual")
    # Residuals for the down blocks without one for the mid block come from T2I-Adapter (its older way).
    if kwargs.get("down_intrablock_additional_residuals") is not None or (down is not None and mid is None):
        return "T2I-Adapter changes the features between the blocks"
    if (kwargs.get("cross_attention_kwargs") or {}).get("gligen") is not None:
        return "GLIGEN changes from step to step"
    return views.obstacle(unet)
