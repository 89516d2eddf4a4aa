"""Attention over few tokens: the same numbers and gradients, by another way where that is quicker."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from sd_ext.training.quick import attention as small_attention
from sd_ext.training.quick.attention import SmallAttention, quicken_attention


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], block_out_channels=[32, 64], layers_per_block=1,
        norm_num_groups=8, attention_head_dim=8, cross_attention_dim=32,
    )  # fmt: skip


def output_and_gradient(unet):
    torch.manual_seed(1)
    x, states = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 5, 32)
    y = unet(x, torch.tensor([3, 700]), states).sample
    y.square().mean().backward()
    return y.detach(), x.grad


def recorded(call, kind, used):
    def recording(*args, **kwargs):
        used.append(kind)
        return call(*args, **kwargs)

    return recording


def test_the_same_numbers_and_gradients(unet, monkeypatch):
    expected = output_and_gradient(unet)
    quicken_attention(unet)
    found = {type(p) for p in unet.attn_processors.values()}
    assert found == {SmallAttention}
    used = []
    for kind in ("plain", "fused"):
        for processor in unet.attn_processors.values():
            real = getattr(processor, kind)
            monkeypatch.setattr(
                processor, kind, lambda *a, real=real, kind=kind, **k: (used.append(kind), real(*a, **k))[1]
            )
    for got, wanted in zip(output_and_gradient(unet), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert set(used) == {"plain"}
    used.clear()
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 32))
    assert set(used) == {"fused"}  # nothing is kept for a backward pass: the fused kernel is the quicker one
    used.clear()
    monkeypatch.setattr(small_attention, "FEW", 64 * 64 - 1)  # of self-attention at 8 x 8
    output_and_gradient(unet)
    assert set(used) == {"plain", "fused"}
    unet.set_attn_processor(AttnProcessor2_0())
