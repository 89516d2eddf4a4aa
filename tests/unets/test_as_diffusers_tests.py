"""What Diffusers' tests of its U-Net ask, asked of ours: neutral to the bit, and with features on that really act."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

from sd_ext import CachedUNet2DConditionModel, TokenReducedUNet2DConditionModel, VariantUNet2DConditionModel

from .features.test_cache import whole_passes
from .inside.test_views import ip_adapter
from .tiny import build, draw, inputs

ASYMMETRIC = {
    "transformer_layers_per_block": [[3, 2], 1],
    "reverse_transformer_layers_per_block": [[3, 4], 1],
}


def call(unet: Any, timestep: float = 500, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return unet(**{**inputs(unet, timestep=timestep), **more}).sample


class Foreign(torch.nn.Module):
    """A processor of somebody else, with a weight and an argument of its own; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(5.0))
        self.calls, self.number = 0, None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, number=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(each) for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        found = torch.bmm(attn.get_attention_scores(query, key), value)
        self.calls, self.number = self.calls + 1, number
        return attn.to_out[0](attn.batch_to_head_dim(found)) + self.weight


def test_processors_of_others_get_their_arguments_and_run_where_the_network_does():
    plain, processor = build(), Foreign()
    plain.set_attn_processor(processor)
    expected = call(plain, cross_attention_kwargs={"number": 123})
    layers, processor.calls = processor.calls, 0
    ours = CachedUNet2DConditionModel.from_unet(plain, cache_interval=2)
    processor = next(iter(ours.attn_processors.values()))
    counts = []
    for timestep in (500, 400):
        processor.calls = 0
        found = call(ours, timestep, cross_attention_kwargs={"number": 123})
        counts.append(processor.calls)
        assert processor.number == 123
        assert torch.equal(found, expected) == (timestep == 500)
    assert counts == [layers, 2], "a reused step runs the last transformer alone"


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float])
def test_masks_of_every_type(dtype):
    """One that keeps all is none, and one that drops the last token is a shorter text."""
    plain, ours = build(), CachedUNet2DConditionModel.from_unet(build(), cache_interval=50)
    text = inputs(plain)["encoder_hidden_states"]
    every, last = torch.ones(2, 5).to(dtype), (torch.arange(5) < 4).expand(2, -1).to(dtype)
    for unet in (plain, ours):
        torch.testing.assert_close(call(unet, encoder_attention_mask=every), call(unet))
        shorter = call(unet, encoder_hidden_states=text[:, :-1])
        torch.testing.assert_close(call(unet, encoder_attention_mask=last), shorter)
        assert not torch.allclose(shorter, call(unet))
    call(ours, 900, encoder_attention_mask=every)
    assert torch.equal(call(ours, 800, encoder_attention_mask=last), call(plain, 800, encoder_attention_mask=last))


@pytest.mark.parametrize("cls", [CachedUNet2DConditionModel, TokenReducedUNet2DConditionModel])
def test_unequal_numbers_of_transformers(cls):
    plain = build(**ASYMMETRIC)
    assert torch.equal(call(VariantUNet2DConditionModel.from_unet(plain)), call(plain))
    unet = cls.from_unet(plain)
    with whole_passes(unet) as passes:
        found = [call(unet, t) for t in (500, 400)]
    cached = cls is CachedUNet2DConditionModel
    assert len(passes) == 2 - cached
    assert not torch.equal(found[1], call(plain, 400))
    assert torch.equal(found[0], call(plain, 500)) == cached


@pytest.mark.parametrize("size", ["auto", "max", 1])
def test_slices_of_attention(size):
    plain, ours = build(), CachedUNet2DConditionModel.from_unet(build(), cache_interval=50)
    call(ours, 900)
    for unet in (plain, ours):
        unet.set_attention_slice(size)
    assert torch.equal(call(ours, 800), call(plain, 800)), "nothing that was computed before is reused"


def test_custom_diffusion_is_set_read_and_set_again():
    plain = build()
    processors: dict[str, Any] = {}
    for name in plain.attn_processors:
        layer = plain.get_submodule(name.removesuffix(".processor"))
        cross = name.endswith("attn2.processor")
        widths = {"hidden_size": layer.to_q.in_features, "cross_attention_dim": 8 if cross else None}
        processor = CustomDiffusionAttnProcessor(train_kv=cross, train_q_out=cross, **widths)
        if cross:
            parts = {"to_k": layer.to_k, "to_v": layer.to_v, "to_q": layer.to_q, "to_out.0": layer.to_out[0]}
            for part, linear in parts.items():
                place, _, index = part.partition(".")
                own = processor.get_submodule(f"{place}_custom_diffusion{'.' + index if index else ''}")
                own.load_state_dict({key: 1.1 * value for key, value in linear.state_dict().items()})
        processors[name] = processor
    ours = VariantUNet2DConditionModel.from_unet(copy.deepcopy(plain), pag_scale=2.0, cache_interval=2)
    before = call(ours)
    for unet in (plain, ours):
        unet.set_attn_processor(dict(processors))
        unet.set_attn_processor(unet.attn_processors)
    ours.set_options(pag_scale=0.0)
    assert torch.equal(call(ours), call(plain))
    ours.set_options(pag_scale=2.0)
    assert not torch.allclose(call(ours), before)


def test_another_ip_adapter_ends_reuse():
    ours = CachedUNet2DConditionModel.from_unet(build(), cache_interval=50)
    extra = ip_adapter(ours)
    first = call(ours, 900, **extra)
    plain = VariantUNet2DConditionModel.from_unet(ours, cache_interval=1)
    assert torch.equal(first, call(plain, 900, **extra))
    assert not torch.equal(call(ours, 800, **extra), call(plain, 800, **extra)), "it reuses, or this tests nothing"
    ip_adapter(ours)
    assert torch.equal(call(ours, 700, **extra), call(plain, 700, **extra))
    extra = {"added_cond_kwargs": {"image_embeds": [2 * draw(2, 1, 6)]}}
    assert torch.equal(call(ours, 600, **extra), call(plain, 600, **extra))
