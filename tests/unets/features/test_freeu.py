"""FreeU as options: Diffusers' pictures, kept by saving, undone to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel

PAPER = {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}
OPTIONS = {f"freeu_{name}": value for name, value in PAPER.items()}


@pytest.fixture
def variant(tiny_pipeline):
    return VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet)


def output(unet):
    torch.manual_seed(0)
    return unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 3, 32)).sample


@pytest.fixture
def expected(tiny_pipeline):
    """Diffusers' own, on a copy: the tiny pipeline is shared."""
    unet = UNet2DConditionModel.from_config(tiny_pipeline.unet.config)
    unet.load_state_dict(tiny_pipeline.unet.state_dict())
    unet.eval().enable_freeu(**PAPER)
    return output(unet)


def test_options_are_diffusers_switch(tiny_pipeline, variant, expected):
    plain = output(tiny_pipeline.unet)
    assert torch.equal(output(variant), plain)
    variant.set_options(**OPTIONS)
    assert torch.equal(output(variant), expected)
    assert (expected - plain).abs().max() > 1e-4
    assert torch.equal(output(tiny_pipeline.unet), plain)
    variant.set_options(**dict.fromkeys(OPTIONS))
    assert torch.equal(output(variant), plain)


def test_a_pipelines_switch_is_recorded(tiny_pipeline, variant, expected):
    plain = output(tiny_pipeline.unet)
    tiny_pipeline.register_modules(unet=variant)
    tiny_pipeline.enable_freeu(**PAPER)
    assert {name: variant.config[name] for name in OPTIONS} == OPTIONS
    assert torch.equal(output(variant), expected)
    tiny_pipeline.disable_freeu()
    assert variant.describe() == "plain"
    assert torch.equal(output(variant), plain)


def test_what_a_plain_unet_was_given_is_recorded(tiny_pipeline, expected):
    unet = copy.deepcopy(tiny_pipeline.unet)
    plain = output(unet)
    unet.enable_freeu(**PAPER)
    variant = VariantUNet2DConditionModel.from_unet(unet)
    assert {name: variant.config[name] for name in OPTIONS} == OPTIONS
    assert torch.equal(output(variant), expected)
    variant.disable_freeu()
    assert torch.equal(output(variant), plain)
    assert torch.equal(output(unet), expected)
    assert torch.equal(output(VariantUNet2DConditionModel.from_unet(unet, **dict.fromkeys(OPTIONS))), plain)


def test_saved_and_loaded(tmp_path, tiny_pipeline, variant, expected):
    variant.enable_freeu(**PAPER)
    variant.save_pretrained(tmp_path)
    assert torch.equal(output(VariantUNet2DConditionModel.from_pretrained(tmp_path)), expected)
    assert torch.equal(output(UNet2DConditionModel.from_pretrained(tmp_path)), output(tiny_pipeline.unet))
    neutral = VariantUNet2DConditionModel.from_pretrained(tmp_path, **dict.fromkeys(OPTIONS))
    assert torch.equal(output(neutral), output(tiny_pipeline.unet))


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "0.9", True])
def test_bad_factors(variant, value):
    with pytest.raises(InputError, match="freeu_s2 must be a number"):
        variant.set_options(**{**OPTIONS, "freeu_s2": value})
    with pytest.raises(InputError, match="freeu_s2, freeu_b1, freeu_b2 missing"):
        variant.set_options(freeu_s1=0.9)
    assert variant.describe() == "plain"
