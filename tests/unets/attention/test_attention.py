"""Attention: each kernel against the plain formula, the choice of kernels as a table, and what is left alone."""

from __future__ import annotations

import copy
import itertools
import logging
import sys
import types

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)

from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel
from sd_ext.unets.attention import kernels as backends
from sd_ext.unets.attention import processors as attention
from sd_ext.unets.attention.classes import PROCESSORS, MemoryEfficientAttnProcessor
from sd_ext.unets.attention.processors import attention_report, set_attention
from sd_ext.unets.inside import say

ON_CPU = ["auto", "sdpa", "xformers", "sage", "sliced"]
SD15 = [(8, size, 768) for size in (40, 80, 160)]
SDXL = [(heads, 64, 2048) for heads in (10, 20)]
STATED = pytest.mark.parametrize("backend", ON_CPU)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing said yet, nothing refused yet, and what is installed looked up anew."""
    say.forget()
    monkeypatch.setattr(backends, "_refused", set())
    backends.available.cache_clear()
    yield
    backends.available.cache_clear()


def layer(heads: int, size: int, **options) -> Attention:
    torch.manual_seed(heads * size)
    return Attention(query_dim=heads * size, heads=heads, dim_head=size, **options).eval()


def both(attn: Attention, backend: str, x: torch.Tensor, *args) -> tuple[torch.Tensor, torch.Tensor]:
    """What the plain formula gives, and what ours does."""
    attn.set_processor(AttnProcessor())
    expected = attn(x, *args)
    attn.set_processor(PROCESSORS[backend]())
    return expected, attn(x, *args)


# ---- against the formula ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "sliced"])
@pytest.mark.parametrize(("heads", "size", "context"), [*SD15, *SDXL])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_layers_of_the_models(backend, heads, size, context, cross, masked):
    attn = layer(heads, size, cross_attention_dim=context if cross else None)
    keys = 11 if cross else 9
    x, states = torch.randn(2, 9, heads * size), torch.randn(2, 11, context) if cross else None
    mask = torch.zeros(2, 1, keys)
    mask[0, :, keys // 2 :] = -10000.0
    expected, got = both(attn, backend, x, states, mask if masked else None)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


OPTIONS = {
    "the autoencoder's": {
        "norm_num_groups": 4,
        "residual_connection": True,
        "bias": True,
        "rescale_output_factor": 1.7,
    },
    "no scale": {"scale_qk": False},
    "upcast": {"upcast_attention": True, "upcast_softmax": True},
    "upcast softmax": {"upcast_softmax": True},
    "layer norm of the context": {"cross_attention_dim": 24, "cross_attention_norm": "layer_norm"},
    "group norm of the context": {
        "cross_attention_dim": 24,
        "cross_attention_norm": "group_norm",
        "cross_attention_norm_num_groups": 6,
    },
    "dropout": {"dropout": 0.5},
}


@STATED
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_of_the_layer(backend, options):
    attn = layer(4, 8, **options)
    states = torch.randn(3, 7, 24) if "cross_attention_dim" in options else None
    for x in (torch.randn(3, 6, 32), torch.randn(3, 32, 2, 3)):
        expected, got = both(attn, backend, x, states)
        assert got.shape == x.shape
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_spatial_norm():
    attn = layer(1, 32, spatial_norm_dim=8)
    x, temb = torch.randn(2, 32, 4, 4), torch.randn(2, 8, 4, 4)
    attn.set_processor(AttnProcessor())
    expected = attn(x, temb=temb)
    attn.set_processor(MemoryEfficientAttnProcessor())
    torch.testing.assert_close(attn(x, temb=temb), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("qk_norm", ["layer_norm", "rms_norm"])
def test_normalized_queries_and_keys(qk_norm):
    attn, x = layer(4, 8, qk_norm=qk_norm), torch.randn(2, 6, 32)
    attn.set_processor(AttnProcessor2_0())
    expected = attn(x)
    attn.set_processor(MemoryEfficientAttnProcessor())
    torch.testing.assert_close(attn(x), expected, atol=1e-6, rtol=1e-6)


@STATED
def test_gradients(backend):
    plain = layer(4, 8, cross_attention_dim=24)
    ours = copy.deepcopy(plain)
    plain.set_processor(AttnProcessor())
    ours.set_processor(PROCESSORS[backend]())
    x, states, weights = torch.randn(2, 6, 32), torch.randn(2, 5, 24), torch.randn(2, 6, 32)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for attn, own in zip((plain, ours), inputs, strict=True):
        (attn(own, states) * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-5, rtol=1e-5)
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("option", ["upcast_attention", "upcast_softmax"])
def test_upcasting_computes_in_float32(monkeypatch, option):
    seen = []
    run = backends.attend
    monkeypatch.setattr(backends, "attend", lambda *args: seen.append({x.dtype for x in args[1:5]}) or run(*args))
    attn = layer(2, 16, **{option: True}).to(torch.bfloat16)
    attn.set_processor(MemoryEfficientAttnProcessor())
    x, mask = torch.randn(2, 12, 32, dtype=torch.bfloat16), torch.zeros(2, 1, 12, dtype=torch.bfloat16)
    assert attn(x, None, mask).dtype is torch.bfloat16
    assert seen == [{torch.float32}]


def test_dropout_in_training_is_the_layers():
    attn, x = layer(4, 8, dropout=0.5).train(), torch.randn(2, 6, 32)
    outputs = []
    for processor in (AttnProcessor(), MemoryEfficientAttnProcessor()):
        attn.set_processor(processor)
        torch.manual_seed(3)
        outputs.append(attn(x))
    assert ((outputs[0] == 0) == (outputs[1] == 0)).all()
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)


def test_compiles_in_one_piece():
    attn, x = layer(4, 8), torch.randn(2, 6, 32)
    attn.set_processor(MemoryEfficientAttnProcessor())
    compiled = torch.compile(attn, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), attn(x))


# ---- the choice ------------------------------------------------------------------------------------------------------

ALL = frozenset({"xformers", "sage"})


@pytest.mark.parametrize(
    ("call", "backend"),
    [
        (("auto", "cuda", torch.float16, 40, False, ALL), "xformers"),
        (("auto", "cuda", torch.float16, 160, True, ALL), "xformers"),
        (("auto", "cuda", torch.float16, 64, False, frozenset()), "sdpa"),
        (("auto", "cuda", torch.float16, 64, False, frozenset({"sage"})), "sdpa"),
        (("auto", "cuda", torch.float64, 64, False, ALL), "sdpa"),
        (("auto", "cuda", torch.float16, 36, False, ALL), "sdpa"),
        (("auto", "cpu", torch.float32, 40, False, ALL), "sdpa"),
        (("auto", "mps", torch.float16, 40, False, ALL), "sdpa"),
        (("sage", "cuda", torch.float16, 64, False, ALL), "sage"),
        (("sage", "cuda", torch.bfloat16, 40, False, ALL), "sage"),
        (("sage", "cuda", torch.float16, 160, False, ALL), "sdpa"),
        (("sage", "cuda", torch.float16, 64, True, ALL), "sdpa"),
        (("sage", "cuda", torch.float32, 64, False, ALL), "sdpa"),
        (("sage", "cpu", torch.float16, 64, False, ALL), "sdpa"),
        (("sage", "cuda", torch.float16, 64, False, frozenset({"xformers"})), "sdpa"),
        (("xformers", "cpu", torch.float32, 40, False, ALL), "sdpa"),
        (("sliced", "cuda", torch.float16, 40, False, ALL), "sliced"),
    ],
)
def test_choice(call, backend):
    chosen = backends.choose(*call)
    assert chosen.backend == backend
    assert chosen.why


def test_every_choice_can_be_run_there():
    names, devices = ["auto", "sdpa", "xformers", "sage", "sliced"], ["cpu", "cuda", "mps", "xpu"]
    sets = [frozenset(), frozenset({"xformers"}), frozenset({"sage"}), ALL]
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    for name, device, dtype, size, mask, have in itertools.product(
        names, devices, dtypes, [8, 40, 64, 80, 160, 512], [False, True], sets
    ):
        chosen = backends.choose(name, device, dtype, size, mask, have).backend
        assert chosen in {"sdpa", "sliced"} | (have if device == "cuda" else set())
        assert chosen != "sage" or (name == "sage" and size <= 128 and not mask and dtype in backends.HALF)


def test_rows_of_a_bias_are_aligned():
    for keys in (7, 8, 77):
        bias = torch.randn(2, 3, 5, keys)
        wide = backends.aligned(bias)
        assert torch.equal(wide, bias)
        assert wide.stride(-2) % 8 == 0


def fake_xformers(monkeypatch, attend, backward=("an operator",)):
    """An xformers whose attention is `attend`; operators for the gradient as given."""
    reasons = types.SimpleNamespace(not_supported_reasons=lambda inputs: [] if backward else ["none"])
    fmha = types.SimpleNamespace(Inputs=lambda **inputs: inputs, ALL_BW_OPS=[reasons])
    ops = types.ModuleType("xformers.ops")
    ops.fmha, ops.memory_efficient_attention = fmha, attend
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def by_sdpa(q, k, v, attn_bias=None, scale=None):
    assert attn_bias is None or attn_bias.shape == (len(q), q.shape[2], q.shape[1], k.shape[1])
    return backends._sdpa(q, k, v, attn_bias, scale)


@pytest.mark.parametrize("mask", [None, torch.randn(2, 1, 1, 7)])
def test_xformers_gets_its_layout(monkeypatch, mask):
    calls = []
    fake_xformers(monkeypatch, lambda *args, **options: calls.append(1) or by_sdpa(*args, **options))
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 4, 8), torch.randn(2, 7, 4, 8)
    got = backends.attend("xformers", q, k, v, mask, 0.3)
    assert torch.equal(got, backends.attend("sdpa", q, k, v, mask, 0.3))
    assert calls


@pytest.mark.parametrize("why", ["the call", "its gradient"])
def test_an_operator_that_is_missing_is_said_once(monkeypatch, caplog, why):
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        raise NotImplementedError("No operator found")

    fake_xformers(monkeypatch, refuse if why == "the call" else by_sdpa, backward=() if why == "its gradient" else (1,))
    q = torch.randn(2, 5, 4, 8, requires_grad=why == "its gradient")
    for _ in range(2):
        assert torch.equal(backends.attend("xformers", q, q, q, None, 0.3), backends._sdpa(q, q, q, None, 0.3))
    assert len(calls) == (why == "the call")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("installed", [False, True])
def test_xformers_without_cuda_is_said_once(monkeypatch, caplog, tiny_pipeline, installed):
    if installed:
        fake_xformers(monkeypatch, by_sdpa)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: installed or None)
    unet = copy.deepcopy(tiny_pipeline.unet)
    caplog.set_level(logging.INFO, "sd_ext")
    report = set_attention(unet, "xformers")
    assert {row.backend for row in report} == {"sdpa"}
    for _ in range(2):
        unet(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 3, 32))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert ("no operator for cpu" if installed else "not installed") in warnings[0]


def test_a_broken_package_counts_as_absent(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())

    def broken(name):
        raise OSError("undefined symbol")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    assert backends.available() == frozenset()


# ---- models and pipelines --------------------------------------------------------------------------------------------


def picture(pipe, **options):
    generator = torch.Generator().manual_seed(0)
    return pipe("a", num_inference_steps=3, generator=generator, output_type="np", **options).images


@STATED
def test_pipelines_draw_the_same(tiny_pipeline, backend):
    tiny_pipeline.unet, tiny_pipeline.vae = copy.deepcopy(tiny_pipeline.unet), copy.deepcopy(tiny_pipeline.vae)
    expected = picture(tiny_pipeline)
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()
    report = set_attention(tiny_pipeline, backend)
    assert _AttentionBackendRegistry.get_active_backend() == before
    assert {row.name.split(".")[0] for row in report} == {"unet", "vae"}
    assert all(isinstance(p, MemoryEfficientAttnProcessor) for p in tiny_pipeline.unet.attn_processors.values())
    torch.testing.assert_close(torch.tensor(picture(tiny_pipeline)), torch.tensor(expected), atol=1e-5, rtol=0)
    set_attention(tiny_pipeline, "default")
    assert {type(p) for p in tiny_pipeline.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert (picture(tiny_pipeline) == expected).all()


def test_masks_reach_the_layers(tiny_pipeline):
    unet = copy.deepcopy(tiny_pipeline.unet)
    x, states, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 32), torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    set_attention(unet, "auto")
    got = unet(x, 5, states, encoder_attention_mask=mask).sample
    alone = unet(x[1:], 5, states[1:, :2]).sample
    torch.testing.assert_close(got[1:], alone, atol=1e-5, rtol=1e-5)


def test_processors_with_more_to_them_are_left_alone(tiny_pipeline):
    unet = copy.deepcopy(tiny_pipeline.unet)
    processors = {name: AttnProcessor2_0() for name in unet.attn_processors}
    own, sliced = list(processors)[:2]
    processors[own] = CustomDiffusionAttnProcessor2_0(hidden_size=32)
    processors[sliced] = SlicedAttnProcessor(1)
    unet.set_attn_processor(dict(processors))
    report = set_attention(unet, "auto")
    after = unet.attn_processors
    assert after[own] is processors[own]
    assert isinstance(after[sliced], MemoryEfficientAttnProcessor)
    assert [row.backend for row in report if row.why == attention._LEFT_ALONE] == ["own"]
    assert "CustomDiffusionAttnProcessor2_0" in str(report)


def test_lora_stays(tiny_pipeline):
    from peft import LoraConfig

    unet = copy.deepcopy(tiny_pipeline.unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    expected = unet(x, 5, states).sample
    set_attention(unet, "auto")
    torch.testing.assert_close(unet(x, 5, states).sample, expected, atol=1e-5, rtol=1e-5)


def test_the_report_counts_layers(tiny_sdxl_pipeline_unet):
    report = attention_report(tiny_sdxl_pipeline_unet)
    assert len(report) == len(tiny_sdxl_pipeline_unet.attn_processors)
    assert {row.kind for row in report} == {"self", "cross"}
    assert all(row.backend == "sdpa" and row.heads * row.head_size == 64 for row in report)
    assert "8x8" in str(report)


@pytest.fixture(scope="module")
def tiny_sdxl_pipeline_unet(tiny_sdxl_dir):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(tiny_sdxl_dir, subfolder="unet")


def test_bad_input(tiny_pipeline):
    with pytest.raises(InputError, match="did you mean 'xformers'"):
        set_attention(tiny_pipeline, "xformer")
    with pytest.raises(InputError, match="no attention layers"):
        set_attention(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="no attention layers"):
        set_attention(None)
    with pytest.raises(InputError, match="no attention layers"):
        attention_report(torch.nn.Linear(1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["auto", "sdpa", "xformers", "sage"])
@pytest.mark.parametrize(("heads", "size", "context"), [*SD15, *SDXL])
@pytest.mark.parametrize("masked", [False, True])
def test_on_cuda(backend, heads, size, context, masked):
    """Half precision against the formula in float32: to 1e-2, SageAttention to 5e-2, of outputs near 1."""
    attn = layer(heads, size, cross_attention_dim=context).cuda()
    x, states = torch.randn(2, 1024, heads * size).cuda(), torch.randn(2, 77, context).cuda()
    mask = torch.zeros(2, 1, 77).cuda()
    mask[0, :, 40:] = -10000.0
    mask = mask if masked else None
    attn.set_processor(AttnProcessor())
    expected = attn(x, states, mask)
    attn.half().set_processor(PROCESSORS[backend]())
    got = attn(x.half(), states.half(), None if mask is None else mask.half())
    tolerance = 5e-2 if backend == "sage" else 1e-2
    torch.testing.assert_close(got.float(), expected, atol=tolerance, rtol=tolerance)


# ---- our U-Nets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def variant(tiny_pipeline):
    return VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet)


def call(unet):
    torch.manual_seed(0)
    return unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 3, 32)).sample


@pytest.mark.parametrize("options", [{}, {"token_merge_ratio": 0.5}, {"tile_size": 4}, {"pag_scale": 2.0}])
def test_diffusers_switch_works_everywhere_and_is_undone(variant, options):
    variant.set_options(**options)
    expected = call(variant)
    variant.enable_xformers_memory_efficient_attention()
    assert {type(x).__name__ for x in variant.attn_processors.values()} == {"XfAttnProcessor"}
    torch.testing.assert_close(call(variant), expected, atol=1e-5, rtol=1e-5)
    variant.disable_xformers_memory_efficient_attention()
    assert {type(x) for x in variant.attn_processors.values()} == {AttnProcessor2_0}
    assert torch.equal(call(variant), expected)
    set_attention(variant, "sdpa")
    variant.set_default_attn_processor()
    assert {type(x) for x in variant.attn_processors.values()} == {AttnProcessor}
    with pytest.raises(InputError, match="attention_op"):
        variant.enable_xformers_memory_efficient_attention(attention_op=object())


@pytest.mark.parametrize("backend", ["auto", "sdpa", "xformers", "sage", "sliced"])
@pytest.mark.parametrize("ours", [False, True])
def test_ip_adapters_keep_the_choice(tiny_pipeline, backend, ours):
    unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet)
    unet = unet if ours else copy.deepcopy(tiny_pipeline.unet)
    set_attention(unet, backend)
    unet._load_ip_adapter_weights([ip_adapter(unet)], low_cpu_mem_usage=False)
    kinds = {name: type(processor) for name, processor in unet.attn_processors.items()}
    assert {kind for name, kind in kinds.items() if "attn1" in name} == {PROCESSORS[backend]}
    assert {kind for name, kind in kinds.items() if "attn2" in name} == {IPAdapterAttnProcessor2_0}
    torch.manual_seed(0)
    given = {"added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 16)]}}
    inputs = torch.randn(2, 4, 8, 8), 5, torch.randn(2, 3, 32)
    got = unet(*inputs, **given).sample
    report = set_attention(unet, "default")
    assert sum(row.why == attention._LEFT_ALONE for row in report) == len(kinds) // 2
    torch.testing.assert_close(unet(*inputs, **given).sample, got, atol=1e-5, rtol=1e-5)


def ip_adapter(unet) -> dict:
    """Random weights of an IP-Adapter for this U-Net: pictures of 16 numbers, four tokens."""
    torch.manual_seed(0)
    weights = {}
    cross = [module for module in attention._layers(unet).values() if module.is_cross_attention]
    for i, module in enumerate(cross):
        for which in ("k", "v"):
            weights[f"{2 * i + 1}.to_{which}_ip.weight"] = torch.randn(module.inner_dim, 32)
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    proj = {"proj.weight": torch.randn(4 * 32, 16), "proj.bias": torch.zeros(4 * 32)}
    return {"image_proj": {**proj, **norm}, "ip_adapter": weights}
