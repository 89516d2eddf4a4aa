"""The variants beside their peers' programs, where those are installed: `pip install --no-deps DeepCache tomesd`."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from diffusers.models.attention import BasicTransformerBlock

from sd_ext.unets import VariantUNet2DConditionModel
from sd_ext.unets.inside import merging

from .tiny import build, draw, inputs

pytestmark = pytest.mark.slow
TIMESTEPS = torch.tensor([900, 800, 700, 600, 500, 400])


@pytest.fixture(scope="module")
def plain() -> Any:
    """With two layers in each block, as DeepCache counts on."""
    return build(layers_per_block=2)


@pytest.fixture(scope="module")
def exact(plain) -> list[torch.Tensor]:
    return predictions(plain)


def predictions(unet: Any) -> list[torch.Tensor]:
    """Of a run whose latents are new at every step, and the same for all networks."""
    text = inputs(unet)["encoder_hidden_states"]
    with torch.no_grad():
        return [unet(draw(2, 4, 8, 8, seed=i), t, text).sample for i, t in enumerate(TIMESTEPS)]


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("branch", range(6))
def test_deepcache_to_the_bit(plain, exact, branch, interval):
    """Every branch of its helper is a cut here: depth branch // 3, layer branch % 3."""
    peer = pytest.importorskip("DeepCache")
    cache = {"cache_interval": interval, "cache_depth": branch // 3, "cache_layer": branch % 3}
    ours = VariantUNet2DConditionModel.from_unet(plain, **cache)
    theirs = copy.deepcopy(plain)
    helper = peer.DeepCacheSDHelper(SimpleNamespace(unet=theirs, scheduler=SimpleNamespace(timesteps=TIMESTEPS)))
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    expected, got = predictions(theirs), predictions(ours)
    assert all(map(torch.equal, got, expected))
    reused = [not torch.equal(one, other) for one, other in zip(got, exact, strict=True)]
    assert reused == [step % interval > 0 for step in range(len(TIMESTEPS))]


@pytest.mark.parametrize("parts", [["self"], ["self", "cross", "ff"]])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_tomesd_where_both_compare_the_same_tokens(plain, exact, ratio, parts, monkeypatch):
    """It compares tokens as they come into a block, we as they come into the attention, after its norm."""
    tomesd = pytest.importorskip("tomesd")
    options = {"token_merge_ratio": ratio, "token_merge_parts": parts, "token_merge_seed": None}
    ours, theirs = VariantUNet2DConditionModel.from_unet(plain, **options), copy.deepcopy(plain)
    others = {"merge_crossattn": "cross" in parts, "merge_mlp": "ff" in parts}
    tomesd.apply_patch(theirs, ratio, max_downsample=1, use_rand=False, **others)
    (expected, *_), (apart, *_) = predictions(theirs), predictions(ours)
    seen: list[torch.Tensor] = []
    for block in ours.modules():
        if isinstance(block, BasicTransformerBlock):
            block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    match = merging.match
    monkeypatch.setattr(merging, "match", lambda x, *rest: match(seen[-1], *rest))
    got, *_ = predictions(ours)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    scale = (expected - exact[0]).norm()
    assert (apart - expected).norm() < 1.5 * scale


LAYERS = (
    "down_blocks.0.attentions",
    "down_blocks.0.attentions.1",
    "mid_block",
    "up_blocks.1",
    "up_blocks.1.attentions.0.transformer_blocks",
)


@pytest.mark.parametrize("layer", LAYERS)
def test_perturbed_attention_in_every_kind_of_block(plain, layer):
    """Diffusers' own processors on the same layers, called with the batch of two halves that they are made for."""
    ours = VariantUNet2DConditionModel.from_unet(plain, pag_scale=2.0, pag_layers=[layer])
    theirs = copy.deepcopy(plain)
    mixin: Any = SimpleNamespace(unet=theirs)
    StableDiffusionPAGPipeline.set_pag_applied_layers(mixin, layer.removesuffix("_block"))
    StableDiffusionPAGPipeline._set_pag_attn_processor(mixin, mixin.pag_applied_layers, False)
    given = inputs(plain)
    doubled = {key: torch.cat([each, each]) if isinstance(each, torch.Tensor) else each for key, each in given.items()}
    with torch.no_grad():
        whole, perturbed = theirs(**doubled).sample.chunk(2)
        got = ours(**given).sample
    torch.testing.assert_close(got, whole + 2.0 * (whole - perturbed), atol=1e-5, rtol=1e-4)
    assert (got - whole).abs().max() > 1e-4
