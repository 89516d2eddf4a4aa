"""Reuse of deep features: when the whole network runs, and that what is reused is never the wrong thing."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from sd_ext import CachedUNet2DConditionModel
from sd_ext.unets.features import cache_schedule as full_steps
from sd_ext.unets.features.cache import family_cut, relative_change
from sd_ext.unets.inside import views

from ..inside.test_views import ip_adapter
from ..tiny import FULL_SIZE, build, control, draw, inputs

TIMESTEPS = torch.tensor([900, 800, 700, 600, 500, 400, 300, 200, 100])


@contextlib.contextmanager
def whole_passes(unet: Any) -> Iterator[list[int]]:
    """Grows by one for each pass of the mid block, which is deep at every cut."""
    passes: list[int] = []
    handle = unet.mid_block.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        handle.remove()


BOTH = pytest.mark.parametrize("options", [{"cache_interval": 100}, {"cache_interval": 1, "attention_gate": 1}])
"""The cache, and frozen cross-attention without it."""


def cached(name: str | None = None, **options: Any) -> Any:
    return CachedUNet2DConditionModel.from_unet(build(name), **{"cache_interval": 100, **options})


def plain(unet: Any, **arguments: Any) -> torch.Tensor:
    """What the network gives without features, whatever the run."""
    with torch.no_grad():
        return UNet2DConditionModel.forward(unet, **arguments).sample


def call(unet: Any, timestep: float = 500, **changes: Any) -> torch.Tensor:
    with torch.no_grad():
        return unet(**{**inputs(unet, timestep=timestep), **changes}).sample


def is_exact(unet: Any, timestep: float, **changes: Any) -> bool:
    """Whether this call, made as part of the run in progress, runs the whole network."""
    given_ = {**inputs(unet, timestep=timestep), **changes}
    return torch.equal(call(unet, **given_), plain(unet, **given_))


def sampled(unet: Any, timesteps: Any = TIMESTEPS, **changes: Any) -> list[torch.Tensor]:
    return [call(unet, t, **changes) for t in timesteps]


# ---- when the whole network runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    return cached("no attention")


explicit = st.lists(st.integers(0, 12), unique=True).map(sorted)


@given(
    schedule=st.one_of(st.sampled_from(["uniform", "front-loaded"]), explicit),
    interval=st.integers(1, 6),
    steps=st.integers(1, 12),
    branches=st.integers(1, 2),
)
@settings(max_examples=20, deadline=None)
def test_whole_passes_are_those_planned(unet, schedule, interval, steps, branches):
    unet.set_options(cache_schedule=schedule, cache_interval=interval)
    planned = [full_steps.is_full(schedule, interval, step) for step in range(steps)]
    with whole_passes(unet) as passes, torch.no_grad():
        for step, t in enumerate(torch.linspace(999, 0, steps)):
            before = len(passes)
            for _ in range(branches):
                unet(**{**inputs(unet), "timestep": t})
            assert len(passes) - before == branches * planned[step]


@pytest.mark.parametrize(
    ("schedule", "interval", "expected"),
    [
        ("uniform", 3, [0, 3, 6, 9, 12]),
        ("uniform", 1, list(range(13))),
        ("front-loaded", 1, list(range(13))),
        ("front-loaded", 2, [0, 1, 3, 6, 9, 12]),
        ("front-loaded", 3, [0, 1, 3, 6, 10]),
        ([0, 2, 5], 3, [0, 2, 5]),
        ([4], 3, [0, 4]),
        ("threshold", 3, [0]),
    ],
)
def test_schedules(schedule, interval, expected):
    assert [step for step in range(13) if full_steps.is_full(schedule, interval, step)] == expected


@given(interval=st.integers(1, 9))
def test_front_loaded_gaps_grow_from_one_and_stay_below_twice_the_interval(interval):
    full = [step for step in range(200) if full_steps.is_full("front-loaded", interval, step)]
    gaps = [b - a for a, b in itertools.pairwise(full)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 1
    assert max(gaps) == 2 * interval - 1


def test_threshold_decides_by_how_far_the_features_moved():
    unet = cached("no attention", cache_schedule="threshold", cache_threshold=1e-6)
    arguments = inputs(unet)
    steps = [arguments["sample"] + 0.1 * i * draw(*arguments["sample"].shape, seed=9) for i in range(9)]
    counts = []
    for threshold in (1e-6, 0.2, 0.4, 1e6):
        unet.set_options(cache_threshold=threshold)
        with whole_passes(unet) as passes:
            for t, sample in zip(TIMESTEPS, steps, strict=True):
                call(unet, t, sample=sample)
        counts.append(len(passes))
    assert counts[0] == 9
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)
    assert 1 < counts[2] <= counts[1] < 9


def test_the_calls_of_a_step_run_whole_together():
    """Guidance multiplies their difference, and with it that of features of different steps."""
    unet = cached("no attention", cache_schedule="threshold", cache_threshold=0.5)
    moved = draw(2, 4, 8, 8, seed=5)
    with whole_passes(unet) as passes:
        counts = []
        for t, first, second in ((900, {}, {}), (800, {}, {"sample": moved}), (700, {"sample": moved}, {})):
            call(unet, t, **first)
            call(unet, t, **second)
            counts.append(len(passes))
        one = {key: value[:1] for key, value in inputs(unet).items() if isinstance(value, torch.Tensor)}
        call(unet, 600, **one)
        call(unet, 600)
        counts.append(len(passes))
    assert counts == [2, 2, 4, 6]


def test_threshold_looks_at_the_skip_connection_where_the_cut_is():
    reference, skips = build(), []
    for block in reversed(reference.up_blocks):
        block.register_forward_pre_hook(
            lambda _, __, kwargs: skips.extend(kwargs["res_hidden_states_tuple"][::-1]), with_kwargs=True
        )
    plain(reference, **inputs(reference))
    skips.reverse()
    for cut in views.cuts(reference):
        options = {"cache_depth": cut.depth, "cache_layer": cut.layer}
        unet = cached(cache_schedule="threshold", cache_threshold=1.0, **options)
        call(unet)
        assert torch.equal(unet.memory["cache"][0].near, skips[2 * cut.depth + cut.layer])
    assert relative_change(torch.ones(3), torch.full((3,), 2.0)) == 0.5


# ---- what is reused --------------------------------------------------------------------------------------------------


def test_reuse_is_a_shallow_pass_over_the_deep_part_of_before():
    """Beside an implementation of its own: a hook that gives the last up block what it was given before."""
    unet = cached(cache_depth=0, cache_layer=1)
    reference, kept = build(), []

    def feed(_: Any, args: Any, kwargs: Any) -> Any:
        kept.append(kwargs["hidden_states"].clone())
        return args, {**kwargs, "hidden_states": kept[0]}

    reference.up_blocks[-1].register_forward_pre_hook(feed, with_kwargs=True)
    for i, t in enumerate((900, 800, 700)):
        sample = draw(2, 4, 16, 16, seed=i)
        assert torch.equal(
            call(unet, t, sample=sample), plain(reference, **{**inputs(unet, timestep=t), "sample": sample})
        )


def test_guidance_batched_or_apart():
    unet, arguments = cached(cache_interval=3), inputs(build())
    both = sampled(unet)
    unet.reset()
    for t, batched in zip(TIMESTEPS, both, strict=True):
        halves = []
        for i in range(2):
            own = {k: v[i : i + 1] for k, v in arguments.items() if isinstance(v, torch.Tensor)}
            halves.append(call(unet, t, **own))
        torch.testing.assert_close(torch.cat(halves), batched, rtol=1e-4, atol=1e-5)


def test_two_runs_are_two_fresh_ones():
    unet = cached(cache_interval=3, attention_gate=4)
    again = [sampled(unet, TIMESTEPS.clone(), sample=draw(2, 4, 16, 16, seed=seed)) for seed in (1, 2, 1)]
    for seed, outs in zip((1, 2, 1), again, strict=True):
        fresh = sampled(cached(cache_interval=3, attention_gate=4), sample=draw(2, 4, 16, 16, seed=seed))
        assert all(map(torch.equal, outs, fresh))


def test_a_run_that_was_broken_off_leaves_nothing():
    unet = cached()
    call(unet, TIMESTEPS[0], sample=draw(2, 4, 16, 16, seed=5))
    assert all(map(torch.equal, sampled(unet, TIMESTEPS.clone()), sampled(cached())))
    call(unet, 900)
    assert not is_exact(unet, 800)
    unet.reset()
    assert is_exact(unet, 700)


@pytest.mark.parametrize(
    "change",
    [
        {"sample": draw(2, 4, 12, 8)},
        {"sample": draw(4, 4, 16, 16), "encoder_hidden_states": draw(4, 5, 8)},
        {"encoder_hidden_states": draw(2, 7, 8)},
        {"encoder_hidden_states": draw(2, 5, 8, seed=77)},
        {"encoder_attention_mask": torch.tensor([[True] * 4 + [False]] * 2)},
        {"cross_attention_kwargs": {"scale": 0.5}},
    ],
    ids=["size", "batch", "longer text", "other text", "mask", "LoRA scale"],
)
def test_a_call_that_is_another_one_runs_the_whole_network(change):
    unet = cached()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    call(unet, 900)
    assert not is_exact(unet, 800)
    given_ = {**inputs(unet, timestep=700), **change}
    with torch.no_grad():
        assert torch.equal(unet(**given_).sample, plain(unet, **given_))
    assert not is_exact(unet, 600, **change), "from here on this is what is kept"


def test_another_dtype_runs_the_whole_network():
    unet = cached()
    call(unet, 900)
    unet.to(torch.bfloat16)
    half = {k: v.bfloat16() for k, v in inputs(unet).items() if isinstance(v, torch.Tensor)}
    assert is_exact(unet, 800, **half)
    assert not is_exact(unet, 700, **half)


def test_text_that_is_equal_elsewhere_in_memory_is_the_same_text():
    unet = cached()
    call(unet, 900)
    assert not is_exact(unet, 800, encoder_hidden_states=inputs(unet)["encoder_hidden_states"].clone())


@BOTH
def test_text_that_was_written_to_is_another(options):
    unet = cached(**options)
    text = inputs(unet)["encoder_hidden_states"]
    call(unet, 900, encoder_hidden_states=text)
    assert not is_exact(unet, 800, encoder_hidden_states=text)
    text.neg_()
    assert is_exact(unet, 700, encoder_hidden_states=text)
    assert not is_exact(unet, 600, encoder_hidden_states=text)


def test_reset_gives_back_the_memory():
    unet = cached()
    call(unet, 900)
    kept = weakref.ref(unet.memory["cache"][0].deep)
    unet.reset()
    assert kept() is None


def test_a_sampler_that_restarts_runs_the_whole_network_there():
    unet = cached("no attention")
    with whole_passes(unet) as passes:
        sampled(unet, torch.tensor([900, 600, 300, 600, 300]))
    assert len(passes) == 2


def test_a_sampler_with_two_calls_a_step():
    unet = cached("no attention", cache_interval=3)
    with whole_passes(unet) as passes:
        sampled(unet, torch.tensor([900, 700, 700, 500, 500, 300]))
    assert len(passes) == 2, "each call is a step of the pipeline's timesteps"
    with whole_passes(unet) as passes:
        sampled(unet, [900, 700, 700, 500, 500, 300])
    assert len(passes) == 1 + 1 + 1, "without them the second call is a branch, which keeps its own"


# ---- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_controlnet_residuals_follow_every_step(name):
    """A residual that changes is felt in shallow passes as far as it enters the shallow part."""
    reference = build(name)
    residuals = control(reference)
    for cut in (views.cuts(reference)[i] for i in (0, 2, 4, -1)):
        unet = cached(name, cache_depth=cut.depth, cache_layer=cut.layer)
        first = call(unet, 900, **copied(residuals))
        assert torch.equal(first, plain(reference, **inputs(unet, timestep=900), **copied(residuals)))
        assert not is_exact(unet, 800, **copied(residuals))
        doubled = copied(residuals)
        doubled["down_block_additional_residuals"][0] *= 2
        assert not torch.equal(call(unet, 800, **copied(residuals)), call(unet, 700, **doubled))
        assert is_exact(unet, 600), "a ControlNet that ends is another kind of call"


def copied(residuals: dict[str, Any]) -> dict[str, Any]:
    return {key: [t.clone() for t in v] if isinstance(v, list) else v.clone() for key, v in residuals.items()}


def test_ip_adapter_reuses():
    unet = cached()
    extra = ip_adapter(unet)
    assert is_exact(unet, 900, **extra)
    assert not is_exact(unet, 800, **extra)
    other = {"added_cond_kwargs": {"image_embeds": [draw(2, 1, 6, seed=5)]}}
    assert is_exact(unet, 700, **other), "another picture is another condition"


@BOTH
def test_an_ip_adapter_whose_picture_or_scale_changes(options):
    unet = cached(**options)
    extra = ip_adapter(unet)
    call(unet, 900, **extra)
    assert not is_exact(unet, 800, **extra)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [0.3]  # as `set_ip_adapter_scale` does
    assert is_exact(unet, 700, **extra)
    assert not is_exact(unet, 600, **extra)
    assert is_exact(unet, 500, added_cond_kwargs={"image_embeds": [draw(2, 1, 6, seed=5)]})


@BOTH
def test_masks_and_scales_that_change(options):
    unet = cached(**options)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    call(unet, 900)
    masks = [torch.tensor([[True] * 4 + [False]] * 2), torch.tensor([[True] * 3 + [False] * 2] * 2)]
    changes = [{"encoder_attention_mask": mask} for mask in masks] + [{"cross_attention_kwargs": {"scale": 0.3}}]
    for i, change in enumerate(changes):
        given_ = {**inputs(unet, timestep=800 - i), **change}
        assert torch.equal(call(unet, **given_), plain(unet, **given_))
    guided = cached("guidance embedding", **options)
    call(guided, 900)
    assert is_exact(guided, 800, timestep_cond=draw(2, 6, seed=9))


def test_t2i_adapter_gligen_training_and_gradients_run_the_whole_network():
    unet = cached("inpainting")
    adapter = draw(2, 8, 8, 8)
    for timestep in (900, 800):
        given_ = inputs(unet, timestep=timestep)
        once, twice = ({"down_intrablock_additional_residuals": [adapter.clone()]} for _ in range(2))
        with torch.no_grad():
            assert torch.equal(unet(**given_, **once).sample, plain(unet, **given_, **twice))
    assert is_exact(unet, 700), "nothing was kept"
    for timestep in (600, 500):
        given_ = inputs(unet, timestep=timestep)
        assert torch.equal(unet(**given_).sample, plain(unet, **given_)), "gradients"
    unet.train()
    assert all(is_exact(unet, timestep) for timestep in (400, 300))
    gated = cached("gated")
    boxes = {"boxes": torch.rand(2, 3, 4), "masks": torch.ones(2, 3), "positive_embeddings": draw(2, 3, 8)}
    assert all(is_exact(gated, t, cross_attention_kwargs={"gligen": boxes}) for t in (900, 800))


# ---- where the weights are -------------------------------------------------------------------------------------------


def test_layers_offloaded_in_groups_run_in_their_order():
    for kind in ({"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}):
        unet = cached("inpainting")
        unet.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), **kind)
        with whole_passes(unet) as passes:
            sampled(unet, TIMESTEPS[:3])
        assert len(passes) == 3


def test_a_block_with_another_forward_is_left_alone():
    unet = cached("inpainting")
    unet.up_blocks[0].forward = unet.up_blocks[0].forward
    assert all(is_exact(unet, t) for t in (900, 800))


@pytest.mark.parametrize("whole", [True, False], ids=["model", "layers"])
def test_accelerates_offloading_reuses(whole):
    from accelerate import cpu_offload, cpu_offload_with_hook

    unet, reference = cached("inpainting"), cached("inpainting")
    expected = sampled(reference)
    if whole:
        unet, _ = cpu_offload_with_hook(unet, "cpu")
    else:
        cpu_offload(unet, "cpu")
    with whole_passes(unet) as passes:
        assert all(map(torch.equal, sampled(unet, TIMESTEPS.clone()), expected))
    assert len(passes) == 1


# ---- several callers -------------------------------------------------------------------------------------------------


def test_pipelines_that_take_turns_each_have_their_own_run():
    unet = cached(cache_interval=4)
    samples = {"one": draw(2, 4, 16, 16, seed=1), "two": draw(2, 4, 16, 16, seed=2)}
    alone = {name: sampled(cached(cache_interval=4), sample=sample) for name, sample in samples.items()}
    loops = {name: TIMESTEPS.clone() for name in samples}
    for i in range(len(TIMESTEPS)):
        for name, sample in samples.items():
            with unet.cache_context(name):
                assert torch.equal(call(unet, loops[name][i], sample=sample), alone[name][i])


def test_pipelines_that_take_turns_without_a_context_are_exact():
    """Each has timesteps of its own, so every call looks like the start of a run."""
    unet = cached()
    one, two = TIMESTEPS.clone(), TIMESTEPS.clone()
    for i in range(3):
        assert is_exact(unet, one[i], sample=draw(2, 4, 16, 16, seed=1))
        assert is_exact(unet, two[i], sample=draw(2, 4, 16, 16, seed=2))


def test_threads_each_have_their_own_run():
    unet = cached(cache_interval=4, attention_gate=5)
    expected = [sampled(copy.deepcopy(unet), sample=draw(2, 4, 16, 16, seed=seed)) for seed in range(3)]
    results: list[Any] = [None] * 3
    barrier = threading.Barrier(3)

    def work(seed: int) -> None:
        outs = []
        for t in TIMESTEPS.clone():
            barrier.wait()
            outs.append(call(unet, t, sample=draw(2, 4, 16, 16, seed=seed)))
        results[seed] = outs

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(all(map(torch.equal, *pair)) for pair in zip(results, expected, strict=True))


def test_a_model_that_served_a_context_forgets_all_when_its_weights_change():
    unet = cached()
    with unet.cache_context("one"):
        call(unet, 900)
    unet.load_state_dict(unet.state_dict())
    with unet.cache_context("one"):
        assert is_exact(unet, 800)


# ---- defaults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cut"), [("sd15", (0, 0)), ("sd21", (0, 0)), ("sdxl", (1, 0)), ("inpainting", (0, 0))]
)
def test_the_cut_of_each_family(name, cut):
    assert family_cut(build(name)) == cut


@pytest.mark.parametrize(
    ("name", "share"),
    [("sd15", 0.079), pytest.param("sdxl", 0.129, marks=pytest.mark.slow)],
)
def test_the_shallow_share_of_the_full_size_models(name, share):
    """FLOPs of a shallow pass beside a whole one, of one forward at the training size."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = CachedUNet2DConditionModel(**FULL_SIZE[name]).eval()
        side, width = unet.config.sample_size, unet.config.cross_attention_dim
        arguments = {"sample": torch.empty(1, 4, side, side), "encoder_hidden_states": torch.empty(1, 77, width)}
        if name == "sdxl":
            arguments["added_cond_kwargs"] = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    flops = []
    for timestep in (900, 800):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(timestep=timestep, **arguments)
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(share, abs=5e-4)


def test_memory_of_a_run_is_one_tensor_a_branch():
    unet = cached()
    sampled(unet)
    assert len(unet.memory["cache"]) == 1
    for _ in range(20):
        call(unet, 5.0)
    assert len(unet.memory["cache"]) <= 8
