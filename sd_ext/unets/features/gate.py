"""Freeze cross-attention after some step, after T-GATE (Zhang et al. 2024, arXiv 2404.02747)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...errors import InputError
from ...seams.diffusers.attention import is_cross
from ...seams.diffusers.unets import is_transformer_block
from ..inside import views
from ..inside.branches import conditional_half, say_unsure
from ..inside.host import Host
from ..inside.same_call import BRANCHES, Noted, call_key, conditions, same_tensors
from .feature import Feature, Inner, Options
from .options import Option


class Frozen(nn.Module):
    """Takes the place of a cross-attention and returns a stored output, repeated to fill the batch.

    Args:
        output: `(rows, tokens, channels)`.
    """

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.output.repeat(hidden_states.shape[0] // self.output.shape[0], 1, 1)


@dataclass
class _Record:
    """The stored outputs of all cross-attentions.

    Args:
        outputs: `(rows, tokens, channels)` by the module's name.
        rows: the batch size; half of it if the two halves of guidance were averaged.
        kind: properties that a later call must share: the sample's shape without the batch, dtype, device, and
            `call_key`.
        conditions: the tensors that the call was conditioned on, the text first; a later call's must have equal
            content.
    """

    outputs: dict[str, torch.Tensor]
    rows: int
    kind: tuple[Any, ...]
    conditions: list[Noted]


class CrossAttentionGate(Feature):
    """From a given step on, every cross-attention returns the output that it had at the step before.

    The text determines the layout in the first steps; later, cross-attention changes little (arXiv 2404.02747, section
    3). Each sample keeps its own outputs, so guidance continues to work.

    The paper (section 4) keeps the mean of the guided and the unguided half. That makes both halves equal and so ends
    guidance; the unguided half may then be skipped, as `GuidanceInterval` does. On the embedded model, such pictures
    are as far from the exact ones as pictures of another seed, and twice as far as with each sample's own outputs.

    Options:
        attention_gate: the number of steps with cross-attention; 0 or None means all steps, which switches the feature
            off.
        attention_gate_mean: keep the mean of the two halves, if the batch is said to consist of both (see
            `inside/told.py`). Halves in separate calls keep their own outputs.
    """

    name = "gate"
    approximates: ClassVar[bool] = True
    options: ClassVar[dict[str, Option]] = {
        "attention_gate": Option(
            0,
            int | None,
            "cross-attention is frozen after so many steps (T-GATE, arXiv 2404.02747)",
            lambda value: value is None or value >= 0,
            "a whole number of steps, or 0 for none",
        ),
        "attention_gate_mean": Option(
            False,
            bool,
            "the paper's way: the mean of both halves, which ends guidance there; else each keeps its own",
        ),
    }

    @classmethod
    def is_neutral(cls, options: Options) -> bool:
        return options["attention_gate"] in (0, None)

    def __init__(self, host: Host, options: Options):
        super().__init__(host, options)
        self.gate, self.mean = options["attention_gate"], options["attention_gate_mean"]
        if not cross_attentions(host.network):
            raise InputError(
                f"attention_gate must be 0: this model has no cross-attention to freeze, got {self.gate!r}"
            )

    def forward(
        self, inner: Inner, sample: Any, timestep: Any, encoder_hidden_states: Any, **kwargs: Any
    ) -> torch.Tensor:
        unet, call, gate = self.host, self.host.call, self.gate
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
        mean = self.mean and unet.told.guided
        if self.mean and not unet.told.sure and call.step == gate - 1:
            say_unsure(unet, sample)
        if call.branch < BRANCHES:
            records[call.branch] = _recorded(captures, sample, now, kind, mean)
        return prediction


def cross_attentions(unet: nn.Module) -> list[str]:
    """The names of the modules that attend to the text."""
    blocks: dict[str, Any] = {name: module for name, module in unet.named_modules() if is_transformer_block(module)}
    return [f"{name}.attn2" for name, block in blocks.items() if block.attn2 is not None and is_cross(block.attn2)]


def _recorded(
    captures: dict[str, views.Capture], sample: torch.Tensor, now: list[torch.Tensor], kind: tuple[Any, ...], mean: bool
) -> _Record:
    # Cloned, because in a compiled CUDA graph the next call overwrites that memory.
    """Make a record of the captured outputs; if `mean` is set, averaged over the two halves of guidance."""
    outputs, rows = {name: capture.kept.clone() for name, capture in captures.items()}, len(sample)
    if mean:
        rows //= 2
        outputs = {name: (output[:rows] + output[rows:]) / 2 for name, output in outputs.items()}
    return _Record(outputs, rows, kind, list(map(Noted.of, now)))


def _kind(unet: Host, sample: torch.Tensor, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return sample.shape[1:], sample.dtype, sample.device, call_key(unet, kwargs)


def _fits(record: _Record, kind: tuple[Any, ...], now: list[torch.Tensor], batch: int) -> bool:
    """Whether the record can be used for this call. A mean of both halves also fits the conditional half alone."""
    if kind != record.kind or batch % record.rows:
        return False
    kept, texts = record.conditions, len(record.conditions[0].tensor)
    if batch == record.rows < texts:
        kept = [Noted(conditional_half(tensor, texts), version) for tensor, version in kept]
    return same_tensors(now, kept)
