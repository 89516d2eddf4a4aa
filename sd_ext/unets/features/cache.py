"""Reuse of deep features from step to step, after DeepCache (Ma, Fang, Wang 2023, arXiv 2312.00858)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...errors import InputError
from ..inside import views
from ..inside.host import Host
from ..inside.same_call import BRANCHES, Noted, call_key, conditions, same_tensors
from ..inside.steps import Call
from ..inside.views import Cut, Replay
from . import cache_schedule
from .feature import Feature, Inner, Options

WHOLE = "cache: last step that ran whole"


class _Changed(Exception):
    """Ends a shallow pass whose features have moved too far; carries them."""


@dataclass
class _Entry:
    """What is kept of a whole pass.

    Args:
        deep: output of the deep part.
        key: what a call must have in common with it.
        conditions: the conditions of the pass, to be compared by content.
        near: what the shallow part gave, for the threshold.
    """

    deep: torch.Tensor
    key: Any
    conditions: list[Noted]
    near: torch.Tensor | None


class DeepFeatureCache(Feature):
    """The deep part of the network runs at some steps only; in between its last output is used again.

    The shallow part always runs, so the picture follows the latent at every step. A call that cannot reuse runs the
    whole network: another shape, dtype, device, LoRA or IP-Adapter scale than before, changed conditions or masks,
    T2I-Adapter, GLIGEN, gradients, training, layers offloaded in groups. ControlNet, IP-Adapter, LoRA, guidance apart
    or batched, samplers with several calls a step and offloading of whole models reuse.

    Options:
        cache_interval: N, whole passes are N steps apart; 1 is neutral.
        cache_depth, cache_layer: the cut, see `views`; deeper is slower and closer to the exact picture. None takes
            the family's, see `family_cut`.
        cache_schedule: which passes are whole, see `cache_schedule.is_full`.
        cache_threshold: for the schedule "threshold", which does not use N: a pass is whole where the features at the
            cut differ from those at the last whole pass by more than this share of their mean absolute value; the
            first call of a step decides for its others. This reads a number from the device at each step; the other
            schedules never wait for it. 0 is neutral.
    """

    name = "cache"
    options: ClassVar[dict[str, Any]] = {
        "cache_interval": 1,
        "cache_depth": None,
        "cache_layer": None,
        "cache_schedule": "uniform",
        "cache_threshold": 0.0,
    }
    kinds: ClassVar[dict[str, Any]] = {
        "cache_interval": int,
        "cache_depth": int | None,
        "cache_layer": int | None,
        "cache_schedule": str | list[int],
        "cache_threshold": float,
    }

    def is_neutral(self, options: Options) -> bool:
        schedule = options["cache_schedule"]
        if schedule == "threshold":
            return options["cache_threshold"] == 0
        interval = options["cache_interval"]
        return interval == 1 and schedule in ("uniform", "front-loaded")

    def validate(self, unet: Host, options: Options) -> None:
        interval = options["cache_interval"]
        if interval < 1:
            raise InputError(f"cache_interval must be a whole number from 1 on, got {interval!r}")
        cache_schedule.check(options["cache_schedule"], options["cache_threshold"])
        chosen_cut(unet, options)

    def forward(
        self, unet: Host, inner: Inner, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any
    ) -> torch.Tensor:
        call = unet.call
        assert call is not None  # this feature runs where steps are counted
        entries: dict[int, _Entry] = unet.memory.setdefault(self.name, {})
        reason = _obstacle(unet, kwargs)
        if reason is not None:
            unet.say_once(f"the cache is not used and the exact network runs: {reason}")
            entries.pop(call.branch, None)
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        step = _Step(unet, call, inner, (sample, timestep, encoder_hidden_states), kwargs)
        entry = entries.get(call.branch)
        planned = cache_schedule.is_full(unet.config["cache_schedule"], unet.config["cache_interval"], call.step)
        # Guidance weighs differences of a step's calls: their features should be of one age.
        whole = planned or call.exact or call.rises or unet.memory.get(WHOLE) == call.step
        if entry is not None and not whole and step.fits(entry):
            prediction = step.shallow(entry)
            if prediction is not None:
                return prediction
        prediction, entry = step.whole()
        unet.memory[WHOLE] = call.step
        if call.branch < BRANCHES:
            entries[call.branch] = entry
        return prediction


class _Step:
    """One call, and the two ways to make it."""

    def __init__(self, unet: Host, call: Call, inner: Inner, inputs: tuple[Any, Any, Any], kwargs: dict[str, Any]):
        self.unet, self.inner, self.inputs, self.kwargs = unet, inner, inputs, kwargs
        self.call, self.model = call, call.model
        self.cut = chosen_cut(unet, unet.config)
        self.threshold = unet.config["cache_threshold"] if unet.config["cache_schedule"] == "threshold" else None
        self.key = _key(unet, inputs, kwargs)
        self.conditions = conditions(inputs[2], kwargs)

    def fits(self, entry: _Entry) -> bool:
        return self.key == entry.key and same_tensors(self.conditions, entry.conditions)

    def shallow(self, entry: _Entry) -> torch.Tensor | None:
        """The prediction with the deep part's output of before, or None if the features have changed too much."""

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
        """The exact prediction, and what to keep of it."""
        near = None if self.threshold is None else self._near()
        self.call.model, capture = views.capturing(self.model, self.cut)
        try:
            prediction = self.inner(*self.inputs, **self.kwargs)
        finally:
            self.call.model = self.model
        # Compiled into a CUDA graph, what it kept lies where the next call writes.
        return prediction, _Entry(capture.kept.clone(), self.key, list(map(Noted.of, self.conditions)), near)

    def _near(self) -> torch.Tensor:
        """What the shallow part hands to the deep one."""
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
        """ControlNet's residual of the mid block is in the deep output already, unless that is the mid block's."""
        residual = self.kwargs.get("mid_block_additional_residual")
        if residual is None or views.ends_at_mid(self.model, self.cut):
            return {}
        return {"mid_block_additional_residual": residual.new_zeros(())}


def family_cut(unet: Host) -> Cut:
    """The measured default of a model family: the largest speed-up whose pictures stay close to the exact ones.

    SDXL's first block has no attention and 1.5% of the work lies before the first cut, too little to follow the
    latent; one block deeper it is 12.9%. In SD 1.x and 2.x it is 7.9% at the first cut.
    """
    return Cut(0, 0) if hasattr(unet.down_blocks[0], "attentions") or len(unet.down_blocks) < 2 else Cut(1, 0)


def chosen_cut(unet: Host, options: Options) -> Cut:
    """The cut that options ask for; `InputError` if the model does not have it."""
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
    """Mean absolute difference over mean absolute value. Reads the device."""
    if before is None:
        return float("inf")
    return float((now - before).abs().mean() / before.abs().mean().clamp_min(1e-12))


def _key(unet: Host, inputs: tuple[Any, Any, Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    sample = inputs[0]
    return sample.shape, sample.dtype, sample.device, call_key(unet, kwargs)


def _obstacle(unet: Host, kwargs: dict[str, Any]) -> str | None:
    """Why this call cannot reuse, if so."""
    down, mid = kwargs.get("down_block_additional_residuals"), kwargs.get("mid_block_additional_residual")
    # Down residuals without one for the mid block are T2I-Adapter's older way.
    if kwargs.get("down_intrablock_additional_residuals") is not None or (down is not None and mid is None):
        return "T2I-Adapter changes the features between the blocks"
    if (kwargs.get("cross_attention_kwargs") or {}).get("gligen") is not None:
        return "GLIGEN changes from step to step"
    return views.obstacle(unet)
