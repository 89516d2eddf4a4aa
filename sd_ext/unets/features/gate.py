"""Cross-attention that is frozen after a step, after T-GATE (Zhang et al. 2024, arXiv 2404.02747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...errors import InputError
from ...seams.diffusers.attention import is_cross
from ...seams.diffusers.unets import is_transformer_block
from ..inside import views
from ..inside.branches import conditional_half
from ..inside.host import Host
from ..inside.same_call import BRANCHES, Noted, call_key, conditions, same_tensors
from .feature import Feature, Inner, Options


class Frozen(nn.Module):
    """Stands for a cross-attention: gives its output of before, repeated over the batch."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.output.repeat(hidden_states.shape[0] // self.output.shape[0], 1, 1)


@dataclass
class _Record:
    """What the cross-attentions gave.

    Args:
        outputs: `(rows, tokens, channels)` by the module's name.
        rows: of the batch; half of it where the two halves of guidance were averaged.
        kind: of the pass: the sample's shape without the batch, dtype and device, and `cache.call_key`.
        conditions: of the pass, the text first, to be compared by content.
    """

    outputs: dict[str, torch.Tensor]
    rows: int
    kind: tuple[Any, ...]
    conditions: list[Noted]


class CrossAttentionGate(Feature):
    """From a step on, every cross-attention gives what it gave at the step before.

    The text sets the layout in the first steps; later cross-attention changes little (arXiv 2404.02747, section 3).
    Each sample keeps its own outputs, so guidance goes on.

    The paper (section 4) keeps the mean of the guided and the unguided half, which makes both halves the same and ends
    guidance; the unguided half may then be left out, as a guidance interval does. On the embedded model these pictures
    are as far from the exact ones as those of another seed, and twice as far as with each sample's own outputs.

    Options:
        attention_gate: number of steps with cross-attention; 0 or None, all of them, is neutral.
        attention_gate_mean: keep the mean of the halves where the batch is both of them, which is found by comparing
            them once a run. Halves called apart keep their own.
    """

    name = "gate"
    options: ClassVar[dict[str, Any]] = {"attention_gate": 0, "attention_gate_mean": False}
    kinds: ClassVar[dict[str, Any]] = {"attention_gate": int | None, "attention_gate_mean": bool}

    def is_neutral(self, options: Options) -> bool:
        return options["attention_gate"] in (0, None)

    def validate(self, unet: Host, options: Options) -> None:
        gate = options["attention_gate"]
        if gate < 0:
            raise InputError(f"attention_gate must be a whole number of steps, or 0 for none, got {gate!r}")
        if not cross_attentions(unet):
            raise InputError(f"attention_gate must be 0: this model has no cross-attention to freeze, got {gate!r}")

    def forward(
        self, unet: Host, inner: Inner, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any
    ) -> torch.Tensor:
        call, gate = unet.call, unet.config["attention_gate"]
        assert call is not None  # this feature runs where steps are counted
        reason = views.obstacle(unet)
        if reason is not None:
            unet.say_once(f"cross-attention is not frozen and the exact network runs: {reason}")
        if reason is not None or call.step < gate - 1:
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        records: dict[int, _Record] = unet.memory.setdefault(self.name, {})
        record = records.get(call.branch)
        model, kind = call.model, _kind(unet, sample, kwargs)
        now = conditions(encoder_hidden_states, kwargs)
        if record is not None and call.step >= gate and _fits(record, kind, now, len(sample)):
            call.model = views.substitute(model, {name: Frozen(output) for name, output in record.outputs.items()})
            return inner(sample, timestep, encoder_hidden_states, **kwargs)
        captures = {name: views.Capture(model.get_submodule(name)) for name in cross_attentions(model)}
        call.model, call.exact = views.substitute(model, captures), True
        prediction = inner(sample, timestep, encoder_hidden_states, **kwargs)
        if not all(hasattr(capture, "kept") for capture in captures.values()):
            unet.say_once("cross-attention is not frozen: a block's forward has been replaced")
            return prediction
        mean = unet.config["attention_gate_mean"]
        if call.branch < BRANCHES:
            records[call.branch] = _recorded(captures, sample, now, kind, mean)
        return prediction


def cross_attentions(unet: nn.Module) -> list[str]:
    """Names of the modules that attend to the text."""
    blocks: dict[str, Any] = {name: module for name, module in unet.named_modules() if is_transformer_block(module)}
    return [f"{name}.attn2" for name, block in blocks.items() if block.attn2 is not None and is_cross(block.attn2)]


def _recorded(
    captures: dict[str, views.Capture], sample: torch.Tensor, now: list[torch.Tensor], kind: tuple[Any, ...], mean: bool
) -> _Record:
    # Cloned: compiled into a CUDA graph, what they kept lies where the next call writes.
    outputs, rows = {name: capture.kept.clone() for name, capture in captures.items()}, len(sample)
    if mean and rows % 2 == 0 and torch.equal(sample[: rows // 2], sample[rows // 2 :]):
        rows //= 2
        outputs = {name: (output[:rows] + output[rows:]) / 2 for name, output in outputs.items()}
    return _Record(outputs, rows, kind, list(map(Noted.of, now)))


def _kind(unet: Host, sample: torch.Tensor, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return sample.shape[1:], sample.dtype, sample.device, call_key(unet, kwargs)


def _fits(record: _Record, kind: tuple[Any, ...], now: list[torch.Tensor], batch: int) -> bool:
    """Whether it is the same call again. A mean of both halves also fits the conditional one alone."""
    if kind != record.kind or batch % record.rows:
        return False
    kept, texts = record.conditions, len(record.conditions[0].tensor)
    if batch == record.rows < texts:
        kept = [Noted(conditional_half(tensor, texts), version) for tensor, version in kept]
    return same_tensors(now, kept)
