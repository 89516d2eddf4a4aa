"""What comes out equals what was trained: in Diffusers, in a reader written from kohya's format, and in ours."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sd_ext.lora import apply_lora, read_lora

from ...few import few
from ..lora_cases import add_kohya, assert_same, outputs, pipeline, untouched, weights

CONVOLUTIONS = {"targets": ("attention", "resnet", "sampler"), "conv_rank": 3}
CASES = {
    "alpha, convolutions, text": ("sd15", {"alpha": 6.0, "text_encoder": True, **CONVOLUTIONS}),
    "rank-stabilised, dropout": ("sd15", {"rslora": True, "rank": 4, "alpha": 3.0, "dropout": 0.3}),
    "pissa, text": ("sd15", {"init": "pissa", "text_encoder": True}),
    "olora, rank-stabilised": ("sd15", {"init": "olora", "rslora": True, "alpha": 4.0}),
    "all": ("sd15", {"targets": ("all",), "alpha": 1.0}),
    "sd21, text": ("sd21", {"text_encoder": True, "text_encoder_rank": 3}),
    "sdxl, text, convolutions": ("sdxl", {"alpha": 5.0, "text_encoder": True, **CONVOLUTIONS}),
    "dora, text": ("sd15", {"method": "dora", "text_encoder": True}),
    "dora, sdxl, convolutions": ("sdxl", {"method": "dora", "alpha": 4.0, **CONVOLUTIONS}),
    "loha": ("sd15", {"method": "loha", "alpha": 3.0, "text_encoder": True, **CONVOLUTIONS}),
    "lokr": ("sdxl", {"method": "lokr", "alpha": 3.0, "text_encoder": True, **CONVOLUTIONS}),
}
IN_DIFFUSERS = [name for name, (_, given) in CASES.items() if given.get("method", "lora") in ("lora", "dora")]
PLAIN = [name for name, (_, given) in CASES.items() if given.get("method", "lora") == "lora"]


@pytest.fixture
def trained(lora_run, request):
    shape, settings = CASES[request.param]
    return lora_run(shape, **settings)


WITNESSES = ("alpha, convolutions, text", "rank-stabilised, dropout", "dora, text", "lokr")
"""Between them all that changes a file: strengths, convolutions, text encoders, another method, SDXL."""


def of(names):
    return pytest.mark.parametrize("trained", few(names, lambda name: name in WITNESSES), indirect=True)


@of(CASES)
def test_training_changes_all_that_is_trained(trained):
    before, made = outputs(untouched(trained.base)), trained.made
    changes = {name: (made[name] - before[name]).abs().max().item() for name in made}
    assert changes["unet"] > 5e-3  # far above the tolerance of what follows
    assert (changes["states"] > 5e-3) == trained.config.text.text_encoder


@of(IN_DIFFUSERS)
def test_diffusers_loads_its_file(trained):
    pipe = pipeline(trained.base)
    pipe.load_lora_weights(trained.folder)
    assert_same(outputs(pipe), trained.made)


@of(PLAIN)
def test_diffusers_loads_kohyas_file(trained):
    pipe = pipeline(trained.base)
    pipe.load_lora_weights(trained.kohya)
    assert_same(outputs(pipe), trained.made)


@of(IN_DIFFUSERS)
def test_a_reader_written_from_kohyas_format_finds_the_same(trained):
    shape = trained.base.name
    assert_same(outputs(add_kohya(pipeline(trained.base), load_file(trained.kohya), shape)), trained.made)


@of(CASES)
def test_ours_reads_every_file_and_takes_it_out_again(trained):
    pipe, made = pipeline(trained.base), trained.made
    before = weights(pipe)
    files = [path for path in (trained.kohya, trained.diffusers) if path.exists()]
    assert len(files) == 1 + (trained.config.adapters.method in ("lora", "dora"))
    for path in files:
        lora = read_lora(path)
        assert lora.base == trained.base.name or path == trained.diffusers
        applied = apply_lora(pipe, lora)
        assert_same(outputs(pipe), made)
        applied.undo()
    after = weights(pipe)
    assert all(torch.equal(after[name], before[name]) for name in before)


@of(["alpha, convolutions, text"])
def test_the_base_on_the_disk_is_what_it_was(trained, tmp_path):
    from ..lora_cases import write_pipeline

    again, now = (weights(pipeline(folder)) for folder in (write_pipeline("sd15", tmp_path / "sd15"), trained.base))
    assert all(torch.equal(again[name], now[name]) for name in again)


@of(["alpha, convolutions, text", "sdxl, text, convolutions"])
def test_strengths_from_the_base_to_the_lora(trained):
    pipe = pipeline(trained.base)
    before, base = outputs(pipe), weights(pipe)
    lora = read_lora(trained.diffusers)
    with apply_lora(pipe, lora, 0.0):
        none = weights(pipe)
    assert all(torch.equal(none[name], base[name]) for name in base)
    with apply_lora(pipe, lora, 0.5):
        half = weights(pipe)
    with apply_lora(pipe, lora, 1.0):
        whole = weights(pipe)
    for name in base:
        torch.testing.assert_close(half[name] - base[name], (whole[name] - base[name]) / 2, atol=1e-6, rtol=1e-5)
    pipe.load_lora_weights(trained.folder, adapter_name="style")
    pipe.set_adapters("style", 0.0)
    assert_same(outputs(pipe), before, atol=1e-6)
    pipe.set_adapters("style", 0.5)
    at_half = outputs(pipe)
    with apply_lora(halved := pipeline(trained.base), lora, 0.5):
        assert_same(at_half, outputs(halved))


@of(["alpha, convolutions, text", "dora, text", "sdxl, text, convolutions"])
def test_fusing_is_applying(trained):
    pipe = pipeline(trained.base)
    pipe.load_lora_weights(trained.folder)
    applied = outputs(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert_same(outputs(pipe), applied, atol=1e-5)
    with apply_lora(ours := pipeline(trained.base), read_lora(trained.diffusers)):
        assert_same(outputs(ours), applied, atol=1e-5)


@of(["pissa, text"])
def test_pissas_difference_to_the_original_base_has_twice_the_rank(trained):
    lora = read_lora(trained.diffusers)
    assert {adapter.rank for adapter in lora} == {2 * trained.config.adapters.rank}
    base, moved = weights(untouched(trained.base)), []
    for name, p in trained.task.model.named_parameters():
        if name.endswith("base_layer.weight"):
            moved.append(not torch.equal(p, base[name.replace(".base_layer", "").replace("towers.encoders.", "")]))
    assert len(moved) == len(lora)
    assert all(moved)


@of(["alpha, convolutions, text"])
def test_float32_factors_are_saved_and_read_exactly(trained):
    lora, parameters = read_lora(trained.diffusers), dict(trained.task.model.named_parameters())
    for module, adapter in lora.adapters.items():
        name = str(module) if module.part == "unet" else f"towers.encoders.{module}"
        for field, key in (("down", "lora_A"), ("up", "lora_B")):
            now = parameters[f"{name}.{key}.default.weight"]
            assert now.dtype == torch.float32
            assert torch.equal(adapter.tensors[field], now)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_half_precision_files_round_once(lora_run, kind):
    trained = lora_run(save_dtype=kind)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    parameters = dict(trained.task.model.named_parameters())
    for module, adapter in read_lora(trained.diffusers).adapters.items():
        assert torch.equal(adapter.down, parameters[f"{module}.lora_A.default.weight"].to(dtype))
    with safe_open(trained.kohya, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys() if name.endswith("weight")} == {dtype}  # noqa: SIM118
