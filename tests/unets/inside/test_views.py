"""A shallow pass with what the deep part just gave is the whole pass, to the last bit, wherever the cut is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from peft import LoraConfig

from sd_ext.unets.inside import views
from sd_ext.unets.inside.views import Replay

from ..tiny import CONFIGS, K_BLOCKS, build, control, draw, inputs

CUTTABLE = [name for name in CONFIGS if name != "no mid block"]


def assert_exact(unet: Any, cut: views.Cut, arguments: dict[str, Any]) -> None:
    """The capturing pass and the shallow one both give the plain prediction."""
    forward = type(unet).forward
    mid = arguments.get("mid_block_additional_residual")
    near = {} if mid is None or views.ends_at_mid(unet, cut) else {"mid_block_additional_residual": torch.zeros(())}
    with torch.no_grad():
        exact = unet(**arguments).sample
        whole, capture = views.capturing(unet, cut)
        assert torch.equal(forward(whole, **arguments).sample, exact)
        shallow = views.shallow(unet, cut, Replay(capture.kept))
        for _ in range(2):  # what is replayed is left as it was
            assert torch.equal(forward(shallow, **{**arguments, **near}).sample, exact)


@pytest.mark.parametrize("name", CUTTABLE)
def test_exact_at_every_cut(name):
    unet = build(name)
    before = {key: id(value) for key, value in unet.named_modules()}
    cuts = views.cuts(unet)
    assert len(cuts) == sum(len(block.resnets) for block in unet.up_blocks)
    for cut in cuts:
        assert_exact(unet, cut, inputs(unet))
    assert {key: id(value) for key, value in unet.named_modules()} == before, "views stay out of the model"


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("size", [(16, 16), (13, 10)])
def test_exact_with_controlnet_and_any_size(name, size):
    unet = build(name)
    sample = draw(2, 4, *size)
    residuals = control(unet) if size == (16, 16) else {}
    for cut in views.cuts(unet):
        assert_exact(unet, cut, {**inputs(unet), "sample": sample, **residuals})


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_exact_with_lora(scale):
    unet = build()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1", "conv2"], init_lora_weights=False))
    for cut in views.cuts(unet):
        assert_exact(unet, cut, {**inputs(unet), "cross_attention_kwargs": {"scale": scale}})


def test_exact_with_freeu():
    unet = build()
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    for cut in views.cuts(unet):
        assert_exact(unet, cut, inputs(unet))


def ip_adapter(unet: Any, tokens: int = 4, width: int = 8) -> dict[str, Any]:
    """Give the U-Net an IP-Adapter with random weights, as the pipelines do; what its call takes then."""
    weights, name = {}, 1
    for key in unet.attn_processors:
        if key.endswith("attn2.processor"):
            inner = unet.get_submodule(key.removesuffix(".processor")).to_q.in_features
            weights[f"{name}.to_k_ip.weight"] = draw(inner, width, seed=name)
            weights[f"{name}.to_v_ip.weight"] = draw(inner, width, seed=name + 1)
            name += 2
    projection = {"proj.weight": draw(tokens * width, 6), "proj.bias": draw(tokens * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}], low_cpu_mem_usage=False)
    assert any(isinstance(p, IPAdapterAttnProcessor2_0) for p in unet.attn_processors.values())
    return {"added_cond_kwargs": {"image_embeds": [draw(2, 1, 6)]}}


def test_exact_with_ip_adapter():
    unet = build()
    extra = ip_adapter(unet)
    for cut in views.cuts(unet):
        assert_exact(unet, cut, {**inputs(unet), **extra})


def test_models_without_cuts():
    assert views.cuts(build(None, **K_BLOCKS)) == []
    assert views.cuts(build("no mid block")) == []


def test_substitute_copies_only_the_way():
    unet = build()
    other = torch.nn.Identity()
    view = views.substitute(unet, {"up_blocks.1.attentions.0.transformer_blocks.0.attn2": other})
    assert view.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn2") is other
    assert unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn2") is not other
    shared = {id(m) for m in view.modules()} & {id(m) for m in unet.modules()}
    assert len(list(view.modules())) - len(shared) == 1 + 7, "the new one, and what holds it"
    assert view.up_blocks[0] is unet.up_blocks[0]
