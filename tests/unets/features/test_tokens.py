"""Token reduction in whole U-Nets: exact where it must be, as cheap as theory says, undone without a trace."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from sd_ext import TokenReducedUNet2DConditionModel, VariantUNet2DConditionModel
from sd_ext.errors import InputError
from sd_ext.unets.inside import levels
from sd_ext.unets.inside.hooks import Hooks
from sd_ext.unets.inside.merging import removed
from sd_ext.unets.inside.token_hooks import BlockTokens, Clock, Grid, Reduction

from ...zoo import ZOO
from ..tiny import CONFIGS, build, control, draw, inputs

EVERY = {
    "merging": {"token_merge_ratio": 0.5},
    "merging everywhere": {"token_merge_ratio": 0.4, "token_merge_parts": ["self", "cross", "ff"]},
    "merging, weighted": {"token_merge_ratio": 0.6, "token_merge_weighted": True, "token_merge_seed": None},
    "downsampling": {"token_kv_stride": 2},
    "tiles": {"tile_size": 4, "tile_shift": True},
    "merging in tiles": {"tile_size": 4, "token_merge_ratio": 0.5},
    "downsampling in tiles": {"tile_size": 4, "token_kv_stride": 2},
}


@pytest.fixture(scope="module", params=[pytest.param("sd15", marks=pytest.mark.slow), "sdxl"])
def plain(request) -> Any:
    return build(request.param)


def variant(plain: Any, **options: Any) -> VariantUNet2DConditionModel:
    return VariantUNet2DConditionModel.from_unet(plain, **options)


@torch.no_grad()
def call(unet: Any, **changes: Any) -> torch.Tensor:
    return unet(**{**inputs(unet), **changes}).sample


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ---- one block -------------------------------------------------------------------------------------------------------


def block_with(grid: tuple[int, int], **reduction: Any) -> tuple[BasicTransformerBlock, Hooks]:
    torch.manual_seed(0)
    block = BasicTransformerBlock(16, 2, 8, cross_attention_dim=8).eval()
    seen, hooks = Grid(), Hooks()
    seen.size = grid
    BlockTokens(Reduction(**reduction), seen, Clock(0), turn=False).install(block, hooks)
    return block, hooks


@torch.no_grad()
def with_and_without(x: torch.Tensor, grid: tuple[int, int], **reduction: Any) -> tuple[torch.Tensor, torch.Tensor]:
    block, hooks = block_with(grid, **reduction)
    text = draw(len(x), 5, 8)
    reduced = block(x, encoder_hidden_states=text)
    hooks.remove()
    return reduced, block(x, encoder_hidden_states=text)


PARTS = st.lists(st.sampled_from(["self", "cross", "ff"]), min_size=1, unique=True).map(tuple)


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 99), PARTS)
@settings(deadline=None, max_examples=25)
def test_pictures_of_equal_cells_merge_exactly(cells, seed, parts):
    x = draw(2, *cells, 16, seed=seed).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    reduced, exact = with_and_without(x, (2 * cells[0], 2 * cells[1]), ratio=0.75, parts=parts)
    torch.testing.assert_close(reduced, exact, rtol=1e-4, atol=1e-5)


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.floats(0, 0.75), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_with_weights_equal_tokens_merge_exactly_in_groups_of_any_size(cells, ratio, seed):
    x = draw(2, *cells, 16, seed=seed).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    grid = (2 * cells[0], 2 * cells[1])
    reduced, exact = with_and_without(x, grid, ratio=ratio, weighted=True)
    torch.testing.assert_close(reduced, exact, rtol=1e-4, atol=1e-5)


def test_constant_features_pass_through_any_reduction():
    x = draw(2, 1, 16).expand(2, 35, 16)
    for reduction in ({"ratio": 0.6}, {"stride": 3}, {"tile": (5, 3)}, {"tile": (3, 3), "shift": True, "ratio": 0.3}):
        torch.testing.assert_close(*with_and_without(x, (5, 7), **reduction), rtol=1e-4, atol=1e-5)


def test_keys_and_values_are_those_of_the_thinned_tokens():
    """By attention written out."""
    block, _ = block_with((6, 5), stride=2)
    attn, x = block.attn1, draw(2, 30, 16)
    picked = x.view(2, 6, 5, 16)[:, ::2, ::2].reshape(2, 9, 16)
    heads = lambda t: t.view(2, -1, 2, 8).transpose(1, 2)  # noqa: E731
    q, k, v = heads(attn.to_q(x)), heads(attn.to_k(picked)), heads(attn.to_v(picked))
    exact = attn.to_out[0](((q @ k.mT / math.sqrt(8)).softmax(-1) @ v).transpose(1, 2).reshape(2, 30, 16))
    torch.testing.assert_close(attn(x), exact)


# ---- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_on_changes_the_prediction_and_off_restores_it_to_the_last_bit(plain, options):
    exact, model = call(plain), variant(plain, **options)
    assert 0 < distance(call(model), exact) < 0.5
    assert torch.equal(call(plain), exact)
    model.set_options(**{name: {"token_merge_ratio": 0, "token_kv_stride": 1}.get(name, 0) for name in options
                         if name in ("token_merge_ratio", "token_kv_stride", "tile_size")})  # fmt: skip
    assert model.describe() == "plain"
    assert torch.equal(call(model), exact)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "options",
    [
        {"token_merge_ratio": 0.001},
        {"token_merge_ratio": [0, 0, 0]},
        {"token_kv_stride": [1, 1, 1]},
        {"tile_size": 16},
        {"tile_size": 100, "tile_shift": True},
        {"tile_size": [0, 8, 4]},
        {"tile_size": "auto", "tile_shift": True},
    ],
)
def test_nothing_to_reduce_is_exact_to_the_last_bit(plain, options):
    if options.get("tile_size") == [0, 8, 4] and 0 in dict(levels.transformers(plain)):
        options = {"tile_size": [16, 8, 4]}
    assert torch.equal(call(variant(plain, **options)), call(plain))


def test_less_merging_is_nearer_to_the_exact_prediction(plain):
    exact, size = call(plain), 16 >> min(level for level, _ in levels.transformers(plain))
    ratios = [0.5, 0.3, 0.1, 2.01 / size**2]
    apart = [distance(call(variant(plain, token_merge_ratio=ratio)), exact) for ratio in ratios]
    assert apart == sorted(apart, reverse=True)
    assert 0 < apart[-1] < apart[0] / 4


@pytest.mark.slow
@pytest.mark.parametrize("size", [(13, 22), (32, 7)])
@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_every_level_takes_every_shape(plain, size, options):
    """Odd sides, and sides that tiles do not divide."""
    there = {level for level, _ in levels.transformers(plain)}
    neutral = {"token_merge_ratio": 0, "token_kv_stride": 1, "tile_size": 0}
    everywhere = {
        name: [value if level in there else neutral[name] for level in range(max(there) + 1)]
        if name in neutral
        else value
        for name, value in options.items()
    }
    sample = draw(2, 4, *size)
    out = call(variant(plain, **everywhere), sample=sample)
    assert out.shape == sample.shape and bool(out.isfinite().all())
    assert distance(out, call(plain, sample=sample)) < 0.7


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_bfloat16(options):
    half = build("sd15").to(torch.bfloat16)
    cast = {name: value.bfloat16() if torch.is_tensor(value) else value for name, value in inputs(half).items()}
    out = call(variant(half, **options), **cast)
    assert out.dtype == torch.bfloat16 and bool(out.isfinite().all())
    assert distance(out, call(half, **cast)) < 0.5


def test_a_number_means_the_finest_level_that_has_attention():
    sd, sdxl = build("sd15"), build("sdxl")
    assert torch.equal(call(variant(sd, token_merge_ratio=0.5)), call(variant(sd, token_merge_ratio=[0.5, 0, 0])))
    assert torch.equal(call(variant(sdxl, token_merge_ratio=0.5)), call(variant(sdxl, token_merge_ratio=[0, 0.5])))
    assert [level for level, _ in levels.transformers(sd)] == [0, 1, 2, 3, 2, 2, 1, 1, 0, 0]
    assert sorted({level for level, _ in levels.transformers(sdxl)}) == [1, 2]


@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY)
def test_guidance_batched_or_apart_is_the_same(plain, options):
    model = variant(plain, **options)
    together = inputs(model, batch=2)
    whole = call(model, **together)
    for i in range(2):
        one = {k: v[i : i + 1] if torch.is_tensor(v) else v for k, v in together.items()}
        if "added_cond_kwargs" in one:
            one["added_cond_kwargs"] = {k: v[i : i + 1] for k, v in one["added_cond_kwargs"].items()}
        torch.testing.assert_close(call(model, **one), whole[i : i + 1], rtol=1e-4, atol=1e-5)


def test_kept_tokens_are_drawn_anew_each_step_from_the_seed(plain):
    model = variant(plain, token_merge_ratio=0.5)

    def steps(**options: Any) -> list[torch.Tensor]:
        model.set_options(**options)  # begins a run
        return [call(model, timestep=t) for t in (800, 800, 600)]

    first = steps(token_merge_seed=1)
    assert torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, steps(token_merge_seed=1), strict=True))
    assert not torch.equal(first[0], steps(token_merge_seed=2)[0])
    clock, salts = Clock(7), set()
    for step in range(50):
        clock.set(step)
        salts.add(int(clock.salt))  # type: ignore[arg-type]
    assert len(salts) == 50
    steps(token_merge_seed=None)
    (tokens,) = model.active_features
    assert tokens.clock.salt is None


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_with_transformers(name):
    plain = build(name)
    if not levels.transformers(plain):
        with pytest.raises(InputError, match="no attention over the picture"):
            variant(plain, token_merge_ratio=0.5)
        return
    assert call(variant(plain, token_merge_ratio=0.5, tile_size=4)).shape == call(plain).shape


# ---- with the rest of the world --------------------------------------------------------------------------------------


def test_with_lora_processors_masks_and_control(plain):
    own = copy.deepcopy(plain)
    own.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    model = variant(own, token_merge_ratio=0.5)
    reduced = call(model)
    assert not torch.equal(reduced, call(variant(plain, token_merge_ratio=0.5)))
    model.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(call(model), reduced, rtol=1e-4, atol=1e-5)
    extra = {"encoder_attention_mask": torch.tensor([[True] * 4 + [False]] * 2), **control(plain)}
    assert call(model, **extra).isfinite().all()


def test_what_it_cannot_reduce_is_exact(plain):
    model = variant(plain, token_kv_stride=2)
    model.fuse_qkv_projections()
    fused = copy.deepcopy(plain)
    fused.fuse_qkv_projections()
    assert torch.equal(call(model), call(fused))
    block, hooks = block_with((4, 4), ratio=0.5)
    x, mask = draw(2, 16, 16), draw(2, 1, 16)
    kept = block(x, attention_mask=mask, encoder_hidden_states=draw(2, 5, 8))
    hooks.remove()
    assert torch.equal(kept, block(x, attention_mask=mask, encoder_hidden_states=draw(2, 5, 8)))


def test_gradients_and_checkpointing(plain):
    """Blocks are run again in the backward pass: on a GPU in a thread of its own, and after further forward passes."""

    def gradients(checkpointing: bool, timesteps: tuple[int, ...] = (500,)) -> dict[str, torch.Tensor | None]:
        model = variant(copy.deepcopy(plain), token_merge_ratio=0.5, tile_size=8, tile_shift=True).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        losses = []
        for timestep in timesteps:
            if not checkpointing:
                model.reset()
            losses.append(model(**inputs(model, timestep=timestep)).sample.square().sum())
        with ThreadPoolExecutor(1) as pool:
            pool.submit(sum(losses).backward).result()
        return {name: p.grad for name, p in model.named_parameters()}

    kept = gradients(False)
    assert all(grad is not None for grad in kept.values())
    torch.testing.assert_close(gradients(True), kept)
    torch.testing.assert_close(gradients(True, (500, 400)), gradients(False, (500, 400)))


def test_compiled_is_eager_with_one_graph_for_all_steps_and_heeds_changed_options():
    plain = build(  # one transformer: compiling is what takes the time
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
    )
    model = variant(plain, token_merge_ratio=0.5, tile_size=4)
    steps = [torch.tensor(t) for t in (900, 700, 500)]
    eager = [call(model, timestep=t) for t in steps]
    model.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model.compile(backend="eager", fullgraph=True)
    for t, expected in zip(steps, eager, strict=True):
        assert torch.equal(call(model, timestep=t), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    model.set_options(token_merge_ratio=0, tile_size=0)
    assert torch.equal(call(model), call(plain))


def test_saved_options_come_back_and_a_plain_unet_loads_the_folder(plain, tmp_path):
    model = TokenReducedUNet2DConditionModel.from_unet(plain, token_merge_parts=["self", "ff"], tile_shift=True)
    model.save_pretrained(tmp_path)
    again = TokenReducedUNet2DConditionModel.from_pretrained(tmp_path)
    assert again.options == model.options and again.options["token_merge_ratio"] == 0.5
    assert torch.equal(call(again), call(model))
    assert torch.equal(call(UNet2DConditionModel.from_pretrained(tmp_path)), call(plain))


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionXLControlNetPipeline",
    ],
)
def test_standard_pipelines(name):
    entry = ZOO[name]
    pipe = entry.build()
    plain, exact = pipe.unet, entry.run(pipe, 2, 0)
    pipe.unet = TokenReducedUNet2DConditionModel.from_unet(plain, token_merge_parts=["self", "cross", "ff"])
    reduced = entry.run(pipe, 2, 0)
    assert reduced.shape == exact.shape and not torch.equal(reduced, exact)
    assert torch.equal(entry.run(pipe, 2, 0), reduced)
    pipe.unet.set_options(token_merge_ratio=0)
    assert torch.equal(entry.run(pipe, 2, 0), exact)


# ---- cost ------------------------------------------------------------------------------------------------------------

FULL = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "sdxl": {
        "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
    },
}


@pytest.fixture(scope="module", params=["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def full(request) -> Any:
    with torch.device("meta"):
        return VariantUNet2DConditionModel(**FULL[request.param]).eval()


@torch.no_grad()
def flops(unet: Any, **options: Any) -> int:
    neutral = {"token_merge_ratio": 0, "token_kv_stride": 1, "tile_size": 0}
    unet.set_options(**neutral | options)
    size, text = unet.config["sample_size"], unet.config["cross_attention_dim"]
    counter = FlopCounterMode(display=False)
    with counter:
        unet(torch.empty(1, 4, size, size, device="meta"), 1, torch.empty(1, 77, text, device="meta"))
    return counter.get_total_flops()


def test_the_cost_falls_as_theory_says(full):
    """Counted by torch over the whole network; expected from the widths and tokens of its layers."""
    finest = min(level for level, _ in levels.transformers(full))
    widths = [
        block.attn1.to_q.in_features
        for level, transformer in levels.transformers(full)
        if level == finest
        for block in levels.transformer_blocks(transformer)
    ]
    side = full.config["sample_size"] >> finest
    n = side * side

    def attention(queries: int, keys: int, c: int) -> int:
        return 2 * (2 * queries * c * c + 2 * keys * c * c + 2 * queries * keys * c)

    exact = flops(full)
    saved = exact - flops(full, token_merge_ratio=0.5)
    m, destinations = n - removed((side, side), 2, 0.5), n // 4
    matching = 2 * (n - destinations) * destinations
    assert saved == sum(attention(n, n, c) - attention(m, m, c) - matching * c for c in widths)
    saved = exact - flops(full, token_kv_stride=2)
    assert saved == sum(attention(n, n, c) - attention(n, n // 4, c) for c in widths)
    saved = exact - flops(full, tile_size=side // 4)
    assert saved == sum(attention(n, n, c) - 16 * attention(n // 16, n // 16, c) for c in widths)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_merge_ratio": 1.5}, "from 0 to 0.75"),
        ({"token_merge_ratio": -0.1}, "from 0 to 0.75"),
        ({"token_merge_ratio": 0.8, "token_merge_cell": 2}, "from 0 to 0.75"),
        ({"token_merge_ratio": float("nan")}, "must be a number"),
        ({"token_merge_ratio": "half"}, "must be a number"),
        ({"token_merge_ratio": True}, "must be a number"),
        ({"token_merge_ratio": [0.5, 0.5, 0.5]}, "at level 0; this model has attention at 1, 2"),
        ({"token_merge_ratio": [0, 0, 0, 0.5]}, "at level 3; this model has attention at 1, 2"),
        ({"token_merge_ratio": 0.5, "token_merge_parts": ["mlp"]}, "list of 'self', 'cross', 'ff'"),
        ({"token_merge_ratio": 0.5, "token_merge_parts": []}, "list of 'self', 'cross', 'ff'"),
        ({"token_merge_ratio": 0.5, "token_merge_cell": 1}, "at least 2"),
        ({"token_merge_ratio": 0.5, "token_merge_seed": 0.5}, "whole number"),
        ({"token_merge_ratio": 0.5, "token_merge_weighted": 1}, "true or false"),
        ({"token_merge_ratio": 0.5, "token_kv_stride": 2}, "both on at level 1"),
        ({"token_merge_ratio": 0.5, "token_merge_parts": ["ff"], "tile_size": 4}, "tiles merge 'self' alone"),
        ({"token_kv_stride": 0}, "from 1"),
        ({"token_kv_stride": 1.5}, "must be a whole number or a list of whole numbers"),
        ({"tile_size": -4}, "side in tokens"),
        ({"tile_size": "big"}, "must be 'auto', a whole number or a list"),
        ({"tile_size": 4, "tile_shift": "yes"}, "true or false"),
    ],
)
def test_options_that_cannot_work_are_refused_and_change_nothing(options, message):
    model = build("sdxl", VariantUNet2DConditionModel)
    with pytest.raises(InputError, match=message) as error:
        model.set_options(**options)
    assert any(name in str(error.value) for name in options)
    assert model.describe() == "plain"


def test_a_model_that_does_not_know_its_training_size_says_so():
    with pytest.raises(InputError, match="sample_size"):
        build("sd15", VariantUNet2DConditionModel, sample_size=None, tile_size="auto")


def test_ip_adapter_keeps_its_processors_and_masks(plain):
    torch.manual_seed(0)
    own = copy.deepcopy(plain)
    width = own.config.cross_attention_dim
    names = [name for name in own.attn_processors if "attn2" in name]
    keys = {
        f"{2 * i + 1}.to_{which}_ip.weight": torch.randn(attention.to_q.in_features, width)
        for i, name in enumerate(names)
        for attention in [own.get_submodule(name.removesuffix(".processor"))]
        for which in ("k", "v")
    }
    project = {"proj.weight": torch.randn(4 * width, 16), "proj.bias": torch.zeros(4 * width)}
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    model = variant(own, token_merge_ratio=0.5, token_merge_parts=["self", "cross", "ff"])
    model._load_ip_adapter_weights([{"image_proj": project | norm, "ip_adapter": keys}], low_cpu_mem_usage=False)
    picture = {"image_embeds": [torch.randn(2, 1, 16)]}
    added = {"added_cond_kwargs": inputs(model).get("added_cond_kwargs", {}) | picture}
    reduced = call(model, **added)
    masks = {"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 64, 64)]}}
    assert call(model, **added, **masks).isfinite().all()  # cross-attention keeps the grid that masks are of
    model.set_options(token_merge_ratio=0)
    exact = call(model, **added)
    assert 0 < distance(reduced, exact) < 0.5
    none = {"added_cond_kwargs": added["added_cond_kwargs"] | {"image_embeds": [torch.zeros(2, 1, 16)]}}
    assert not torch.equal(exact, call(model, **none))


def test_threads_do_not_meet(plain):
    """Each with a picture of its own shape; the hooks of one leave nothing for the other."""
    model = variant(plain, token_merge_ratio=0.5, tile_size=4, highres_factor=2)
    shapes = [(16, 16), (12, 20), (24, 8), (10, 14)] * 2
    samples = [draw(2, 4, *shape) for shape in shapes]
    alone = [call(model, sample=sample, timestep=900) for sample in samples]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda sample: call_apart(model, sample), samples))
            assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def call_apart(model: Any, sample: torch.Tensor) -> torch.Tensor:
    """A call that begins a run, whichever thread makes it."""
    with model.cache_context(str(id(sample))):
        model._states.current().tracker.reset()
        return call(model, sample=sample, timestep=900)
