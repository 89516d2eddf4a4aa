"""Cross-attention frozen after a step, beside hooks that do the same to the plain U-Net."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sd_ext
from sd_ext import CachedUNet2DConditionModel, VariantUNet2DConditionModel
from sd_ext.errors import InputError
from sd_ext.unets.features.gate import cross_attentions
from sd_ext.unets.variant import OPTIONS

from ..tiny import build
from .test_cache import call, draw, inputs, is_exact, plain, sampled, whole_passes

TIMESTEPS = torch.tensor([900, 700, 500, 300, 100])


def gated(name: str | None = None, gate: int = 2, **options: Any) -> Any:
    return VariantUNet2DConditionModel.from_unet(build(name), attention_gate=gate, **options)


def guided(unet: Any, seed: int = 0) -> dict[str, Any]:
    """The same latent twice, with and without text."""
    return {"sample": draw(1, *inputs(unet)["sample"].shape[1:], seed=seed).repeat(2, 1, 1, 1)}


def by_hooks(name: str | None, gate: int, mean: bool, **changes: Any) -> list[torch.Tensor]:
    """The plain network, with hooks that freeze what cross-attentions return."""
    unet, kept, step = build(name), {}, 0

    def hook(module: Any, _: Any, out: torch.Tensor) -> torch.Tensor | None:
        if step < gate:
            kept[module] = out.unflatten(0, (2, -1)).mean(0).repeat(2, 1, 1) if mean else out
            return None
        return kept[module]

    for path in cross_attentions(unet):
        unet.get_submodule(path).register_forward_hook(hook)
    outs = []
    for t in TIMESTEPS:
        outs.append(plain(unet, **{**inputs(unet, timestep=t), **changes}))
        step += 1
    return outs


@pytest.mark.parametrize(
    ("name", "gate", "mean"),
    [
        ("sd15", 1, True),
        ("sd15", 3, False),
        ("sdxl", 3, True),
        ("sdxl", 1, False),
        (None, 1, False),
        ("unequal", 3, True),
    ],
)
def test_beside_hooks(name, gate, mean):
    unet = gated(name, gate, attention_gate_mean=mean)
    changes = guided(unet)
    with sd_ext.sampling(unet, guidance_scale=5.0):
        ours, theirs = sampled(unet, TIMESTEPS, **changes), by_hooks(name, gate, mean=mean, **changes)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours[-1], plain(unet, **{**inputs(unet, timestep=TIMESTEPS[-1]), **changes}))


def test_a_batch_of_different_pictures_is_not_averaged():
    ours, theirs = sampled(gated(attention_gate_mean=True), TIMESTEPS), by_hooks(None, 2, mean=False)
    assert all(map(torch.equal, ours, theirs))


def test_a_gate_that_no_run_reaches_changes_nothing():
    unet = gated(gate=5)
    assert all(is_exact(unet, t) for t in TIMESTEPS)


def test_frozen_cross_attention_is_not_computed():
    unet, calls = gated(gate=2), []
    for path in cross_attentions(unet):
        unet.get_submodule(path).to_q.register_forward_hook(lambda *_: calls.append(1))
    sampled(unet, TIMESTEPS)
    assert len(calls) == 2 * len(cross_attentions(unet))


def test_the_unguided_half_may_be_dropped():
    """As a guidance interval does: what was averaged serves the half that is left."""
    unet = gated(attention_gate_mean=True)
    changes = guided(unet)
    with sd_ext.sampling(unet, guidance_scale=5.0):
        both = sampled(unet, TIMESTEPS[:4], **changes)
    half = {"sample": changes["sample"][1:], "encoder_hidden_states": inputs(unet)["encoder_hidden_states"][1:]}
    one = call(unet, 300, **half)  # not of the tensor of timesteps: begins a run
    assert torch.equal(one, plain(unet, **{**inputs(unet, timestep=300), **half}))
    with sd_ext.sampling(unet, guidance_scale=5.0):
        sampled(unet, TIMESTEPS[:3], **changes)
    last = call(unet, TIMESTEPS[3], **half)
    torch.testing.assert_close(last, both[3][1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[3][0], both[3][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"sample": draw(2, 4, 12, 8)}, {"encoder_hidden_states": draw(2, 5, 8, seed=7)}],
    ids=["size", "text"],
)
def test_another_picture_or_text_is_attended_to_anew(change):
    unet = gated(gate=1)
    call(unet, 900)
    assert not is_exact(unet, 800)
    given = {**inputs(unet, timestep=700), **change}
    assert torch.equal(call(unet, **given), plain(unet, **given))
    assert not is_exact(unet, 600, **change)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("count", [1, 4])
def test_another_number_of_pictures_is_attended_to_anew(mean, count):
    """Unless they are the conditional half of what was averaged, nothing says whose outputs are kept."""
    unet = gated(gate=1, attention_gate_mean=mean)
    call(unet, 900, **guided(unet))
    others = {"sample": draw(count, 4, 16, 16), "encoder_hidden_states": draw(count, 5, 8, seed=7)}
    assert is_exact(unet, 800, **others)


def test_apart_from_each_other_branches_keep_their_own():
    unet = gated()
    arguments, batched = inputs(unet), sampled(gated(), TIMESTEPS)
    for t, both in zip(TIMESTEPS.clone(), batched, strict=True):
        for i in range(2):
            own = {k: v[i : i + 1] for k, v in arguments.items() if isinstance(v, torch.Tensor)}
            torch.testing.assert_close(call(unet, t, **own), both[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", [1, 2, 3, 4])
def test_with_a_cache_the_step_that_is_kept_runs_whole(gate):
    unet = CachedUNet2DConditionModel.from_unet(build(), cache_interval=4, attention_gate=gate)
    with whole_passes(unet) as passes:
        sampled(unet, TIMESTEPS)
    assert len(passes) == len({0, 4, gate - 1})


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_beside_every_other_feature(name):
    """Together they run, repeat, and leave nothing behind: here the grid changes while cross-attention is frozen."""
    freeu = {"freeu_s1": 0.9, "freeu_s2": 0.2, "freeu_b1": 1.2, "freeu_b2": 1.4}
    others = {"token_merge_ratio": 0.5, "highres_factor": 2.0, "pag_scale": 2.0, **freeu}
    unet = gated(name, 2, cache_interval=3, **others)
    changes = guided(unet)
    one, two = (sampled(unet, TIMESTEPS.clone(), **changes) for _ in range(2))
    assert all(map(torch.equal, one, two))
    assert all(torch.isfinite(out).all() for out in one)
    unet.set_options(**OPTIONS)
    assert all(is_exact(unet, t, **changes) for t in TIMESTEPS)


def test_a_block_with_another_forward_attends(caplog):
    unet = gated(gate=1)
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    block.forward = block.forward
    assert all(is_exact(unet, t) for t in (900, 800))
    assert [r.message.split(": ")[-1] for r in caplog.records] == ["a block's forward has been replaced"]


def test_gradients_and_training_attend():
    unet = gated(gate=1)
    for timestep in (900, 800):
        given = inputs(unet, timestep=timestep)
        assert torch.equal(unet(**given).sample, plain(unet, **given))
    unet.train()
    assert all(is_exact(unet, t) for t in (700, 600))


def test_the_mean_is_on_or_off():
    with pytest.raises(InputError, match="attention_gate_mean"):
        gated(attention_gate_mean=1)
