"""Diffusers' calls for caches and kernels: they act on this U-Net, alone, and say what cannot be had."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from diffusers import FirstBlockCacheConfig, UNet2DConditionModel
from diffusers.models import attention_dispatch as theirs

import sd_ext
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.seams.diffusers.unets import freeu_factors
from sd_ext.unets import VariantUNet2DConditionModel
from sd_ext.unets.attention.classes import MemoryEfficientAttnProcessor
from tests.unets.tiny import build, draw, inputs


def run(unet, timesteps=(900, 800, 700)):
    x, states = draw(2, 4, 8, 8), draw(2, 5, 8)
    with torch.no_grad():
        return torch.stack([unet(x, t, states).sample for t in torch.tensor(timesteps)])


# ---- caches ----------------------------------------------------------------------------------------------------------


def test_enable_cache_reuses_and_disable_cache_ends_it(caplog):
    unet, deep = VariantUNet2DConditionModel.from_unet(build()), []
    unet.mid_block.register_forward_hook(lambda *_: deep.append(1))
    plain = run(unet)
    assert (unet.is_cache_enabled, len(deep)) == (False, 3)
    unet.enable_cache(sd_ext.DeepCacheConfig(interval=2))
    run(unet)
    assert (unet.is_cache_enabled, len(deep)) == (True, 5)
    assert unet.config.cache_interval == 2
    with unet.cache_context("cond", step_index=0):
        run(unet)
    with pytest.raises(InputError, match="on already"):
        unet.enable_cache(sd_ext.DeepCacheConfig())
    unet.disable_cache()
    assert not unet.is_cache_enabled
    assert torch.equal(run(unet), plain)
    unet.disable_cache()
    assert "no cache is on" in caplog.text
    for config, words in (
        (FirstBlockCacheConfig(), "FirstBlockCacheConfig is for other models"),
        (sd_ext.DeepCacheConfig(interval=1), "reuses nothing"),
        (sd_ext.DeepCacheConfig(depth=9), "cache_depth must be"),
    ):
        with pytest.raises(InputError, match=words):
            unet.enable_cache(config)


# ---- kernels ---------------------------------------------------------------------------------------------------------


def test_a_kernel_by_diffusers_name_computes_this_model_and_no_other(monkeypatch):
    used, dispatch = [], theirs.dispatch_attention_fn

    def watched(*args, **kwargs):
        used.append(kwargs["backend"].value)
        return dispatch(*args, **kwargs)

    monkeypatch.setattr(theirs, "dispatch_attention_fn", watched)
    unet, other = VariantUNet2DConditionModel.from_unet(build()), build()
    active = theirs._AttentionBackendRegistry.get_active_backend()
    expected = run(other)
    unet.set_attention_backend("_native_math")
    torch.testing.assert_close(run(unet), expected, atol=1e-5, rtol=1e-4)
    layers = len(sd_ext.attention_report(unet))
    assert used == ["_native_math"] * 3 * layers
    assert {layer.backend for layer in sd_ext.attention_report(unet)} == {"_native_math"}
    for copied in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert {layer.backend for layer in sd_ext.attention_report(copied)} == {"_native_math"}
    assert theirs._AttentionBackendRegistry.get_active_backend() == active
    assert torch.equal(run(other), expected)
    unet.reset_attention_backend()
    assert torch.equal(run(unet), expected)
    assert len(used) == 3 * layers


def test_of_a_whole_pipeline(tiny_pipeline):
    """The autoencoder's layers too, of Diffusers' own classes."""
    before = {name: part.attn_processors for name, part in (("unet", tiny_pipeline.unet), ("vae", tiny_pipeline.vae))}
    try:
        report = sd_ext.set_attention(tiny_pipeline, "native")
        assert {layer.backend for layer in report} == {"native"}
        assert any(layer.name.startswith("vae.") for layer in report)
        assert type(tiny_pipeline.unet) is UNet2DConditionModel
    finally:
        sd_ext.set_attention(tiny_pipeline, "default")
        for name, processors in before.items():
            getattr(tiny_pipeline, name).set_attn_processor(processors)


def test_what_a_kernel_cannot_do_is_said(monkeypatch, caplog):
    unet = VariantUNet2DConditionModel.from_unet(build())
    before = unet.attn_processors
    with pytest.raises(UnknownNameError, match="native"):
        unet.set_attention_backend("nativ")
    monkeypatch.setattr(theirs, "_CAN_USE_FLASH_ATTN", False)
    with pytest.raises(InputError, match=r"'flash' cannot be had here: .*flash-attn"):
        unet.set_attention_backend("flash")
    assert unet.attn_processors == before
    monkeypatch.setattr(theirs, "_check_attention_backend_requirements", lambda backend: None)
    unet.set_attention_backend("flash")  # as if it were there
    with pytest.raises(InputError, match="'flash' cannot compute float32 heads of 2 channels on cpu"):
        run(unet)
    assert issubclass(type(next(iter(unet.attn_processors.values()))), MemoryEfficientAttnProcessor)
    masked = {**inputs(unet), "encoder_attention_mask": torch.ones(2, 5)}
    cross = [name for name in unet.attn_processors if "attn2" in name]
    unet.set_attn_processor({**before, **{name: unet.attn_processors[name] for name in cross}})
    with torch.no_grad():
        unet(**masked)
    assert "takes no mask, and sdpa computes" in caplog.text


# ---- AnimateDiff -----------------------------------------------------------------------------------------------------


def test_networks_with_motion_have_freeu_and_say_what_they_do_without(said):
    from diffusers import UNetMotionModel

    factors = {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}
    unet = build()
    told = {f"freeu_{name}": factor for name, factor in factors.items()}
    ours = VariantUNet2DConditionModel.from_unet(unet, cache_interval=2, apg_eta=0.5, **told)
    model = UNetMotionModel.from_unet2d(ours)
    assert freeu_factors(model) == factors
    assert said == [
        "VariantUNet2DConditionModel: AnimateDiff builds a network of its own, which does without guidance, cache"
    ]
    assert not freeu_factors(UNetMotionModel.from_unet2d(unet))
    UNetMotionModel.from_unet2d(VariantUNet2DConditionModel.from_unet(unet))
    assert len(said) == 1
