"""Devices, number formats, offloading, kernels and options of the U-Net, as `sd-ext generate` takes them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from sd_ext.cli import machine, prepare
from sd_ext.cli.pictures import read_record
from sd_ext.cli.request import Recipe, Resources
from sd_ext.cli.unet_options import single_options
from sd_ext.errors import InputError

from ..few import few


@pytest.fixture
def draw(run, tiny_pipeline_dir):
    return lambda *arguments: run("generate", "red apple", "--model", tiny_pipeline_dir, "--steps", 3, *arguments)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def recipe(**options) -> Recipe:
    return Recipe(prompt="red apple", **options)


@pytest.mark.parametrize(
    ("how", "family"),
    few(product(["model", "sequential"], ["sd", "sdxl"]), lambda case: case[0][0] + case[1] in ("ssd", "msdxl")),
)
def test_offloading_and_slicing_change_nothing(tiny_pipeline, tiny_sdxl_dir, monkeypatch, how, family):
    """On the CPU as the device: the hooks are the same as on a GPU, and so is what they must leave as it was."""
    import accelerate
    from diffusers import StableDiffusionXLPipeline

    offload = accelerate.cpu_offload  # Diffusers names the device cpu:0, where moving a weight makes no weight
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, device, **how: offload(model, "cpu", **how))

    pipe = tiny_pipeline if family == "sd" else StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_dir)
    pipe.set_progress_bar_config(disable=True)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}

    def picture() -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        size = {"width": 64, "height": 64}
        return pipe(["red", "blue"], num_inference_steps=2, generator=generators, output_type="np", **size).images

    before = picture()
    machine.set_machine(pipe, recipe(), Resources(vae_slicing=True), lambda text: None)
    try:
        sliced = picture()
        with machine.offloaded(pipe, how, torch.device("cpu")):
            assert any(hasattr(module, "_hf_hook") for module in pipe.unet.modules())
            assert (picture() == sliced).all()
    finally:
        pipe.vae.disable_slicing()
    assert np.abs(sliced - before).max() < 1e-5  # the autoencoder's kernels may round differently for one than for two
    assert not any(hasattr(module, "_hf_hook") for module in pipe.unet.modules())
    assert all((value == weights[name]).all() for name, value in pipe.unet.state_dict().items())
    assert (picture() == before).all()


def test_devices(monkeypatch):
    def found(device="auto", dtype="auto", offload=None):
        return machine.resolve_device(recipe(device=device, dtype=dtype), offload)

    def here(cuda, mps):
        monkeypatch.setattr("torch.cuda.is_available", lambda: cuda > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: cuda)
        monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)

    here(0, False)
    assert found() == (torch.device("cpu"), torch.float32)
    assert found(dtype="bf16") == (torch.device("cpu"), torch.bfloat16)
    for device, offload in (("cuda", None), ("cuda:0", None), ("mps", None), ("auto", "model"), ("cpu", "sequential")):
        with pytest.raises(InputError, match="torch finds no"):
            found(device, offload=offload)
    here(2, False)
    assert found() == (torch.device("cuda"), torch.float16)
    assert found("cuda:1", "fp32", "model") == (torch.device("cuda:1"), torch.float32)
    with pytest.raises(InputError, match="cuda:0 to cuda:1"):
        found("cuda:2")
    here(0, True)
    assert found() == found("mps") == (torch.device("mps"), torch.float16)
    assert found("cpu") == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("short", "long"), few([("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")], 3))
def test_short_names_of_dtypes(draw, short, long):
    one, other = draw("--dtype", short).paths[0], draw("--dtype", long).paths[0]
    assert read_record(one).recipe.dtype == long
    assert (pixels(one) == pixels(other)).all()


def test_kernels_and_tiles_are_kept_in_the_picture_and_change_at_most_last_bits(draw, run):
    plain = pixels(draw().paths[0])
    done = draw("--attention", "sliced", "--vae-tiling", "--vae-slicing")
    assert np.abs(pixels(done.paths[0]) - plain).max() <= 1
    kept = read_record(done.paths[0]).recipe
    assert (kept.attention, kept.vae_tiling) == ("sliced", True)
    again = run("generate", "--again", done.paths[0]).paths[0]
    assert (pixels(again) == pixels(done.paths[0])).all()


def test_a_kernel_that_is_not_here_is_named_with_the_one_taken(draw):
    from sd_ext.unets.attention.kernels import available

    if "xformers" in available():
        pytest.skip("xformers is installed")
    assert "some layers use sdpa instead" in draw("--attention", "xformers").err


@pytest.mark.parametrize("wraps", ["plain", "variant"])
def test_the_network_is_compiled(tiny_pipeline, monkeypatch, wraps):
    """The compiler itself takes minutes: here it is one that counts the calls of what it made."""
    import sd_ext

    calls = []

    def compiled(function, *arguments, **options):
        def call(*given, **named):
            calls.append(function)
            return function(*given, **named)

        return call

    monkeypatch.setattr("torch.compile", compiled)
    network = tiny_pipeline.unet
    fresh = type(network).from_config(network.config)  # compiled in place, and the fixture's is shared
    tiny_pipeline.register_modules(unet=fresh)
    if wraps == "variant":
        tiny_pipeline.register_modules(unet=sd_ext.CachedUNet2DConditionModel.from_unet(fresh))
    machine.set_machine(tiny_pipeline, recipe(compile=True), Resources(), lambda text: None)
    tiny_pipeline("red", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert len(calls) == 2 if wraps == "plain" else calls


@pytest.mark.parametrize(
    ("dtype", "upcast", "said"), [("float16", False, True), ("float16", True, False), ("float32", False, False)]
)
def test_an_autoencoder_that_may_overflow_is_said(tiny_sdxl_dir, dtype, upcast, said):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_dir, dtype=getattr(torch, dtype))
    pipe.vae.register_to_config(force_upcast=upcast)
    told: list[str] = []
    machine.set_machine(pipe, recipe(), Resources(), told.append)
    assert [("force_upcast" in sentence) for sentence in told] == [True] * said
    if upcast:  # Diffusers then decodes in float32
        seen = []
        decode = pipe.vae.decode
        pipe.vae.decode = lambda z, *arguments, **options: seen.append(z.dtype) or decode(z, *arguments, **options)
        pipe("red", num_inference_steps=1, width=64, height=64)
        assert seen == [torch.float32]


def test_options_of_the_unet(draw, run):
    plain = draw("--steps", 4).paths[0]
    pushed = draw("--steps", 4, "--unet-option", "pag_scale=3").paths[0]
    assert (pixels(pushed) != pixels(plain)).any()
    neutral = draw("--steps", 4, "--unet", "fast", "--unet-option", "cache_interval=1").paths[0]
    assert (pixels(neutral) == pixels(plain)).all()
    again = run("generate", "--again", pushed).paths[0]
    assert (pixels(again) == pixels(pushed)).all()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pag_scale=3", 3),
        ("pag_layers=mid,up_blocks.0", ["mid", "up_blocks.0"]),
        ("pag_layers=mid", ["mid"]),
        ('pag_layers=["mid"]', ["mid"]),
        ("pag_interval=0.1,0.8", [0.1, 0.8]),
        ("seg_sigma=none", None),
        ("tile_size=auto", "auto"),
        ("tile_shift=True", True),
        ("token_merge_ratio=0.5,0.25", [0.5, 0.25]),
    ],
)
def test_values_of_options_are_typed(text, value):
    assert single_options(recipe(unet_option=(text,))) == {text.split("=")[0]: value}


def test_kernels_are_those_of_diffusers():
    from sd_ext.cli.request.machine import ATTENTION, KERNELS
    from sd_ext.seams.diffusers.dispatch import backend_names

    assert set(backend_names()) <= {*ATTENTION, *KERNELS}


BAD = {
    "device": (["--device", "gpu"], "--device 'gpu' is not known"),
    "device's number": (["--device", "cuda:x"], "--device 'cuda:x' is not known"),
    "dtype": (["--dtype", "int8"], "--dtype 'int8' is not known"),
    "offload": (["--offload", "all"], "--offload 'all' is not known"),
    "offload on a CPU": (["--offload", "model", "--device", "cpu"], "--device is cpu"),
    "attention": (["--attention", "flash9"], "--attention 'flash9' is not known"),
    "attention on a CPU": (["--attention", "xformers", "--device", "cpu"], "needs a CUDA device"),
    "no batch": (["--batch", "0"], "--batch 0 cannot work"),
    "a large batch": (["--batch", "65"], "--batch 65 cannot work"),
    "no value": (["--unet-option", "pag_scale"], "write NAME=VALUE"),
    "empty value": (["--unet-option", "pag_scale="], "write NAME=VALUE"),
    "unknown option": (["--unet-option", "pag_scal=3"], "did you mean 'pag_scale'"),
    "wrong type": (["--unet-option", "pag_scale=much"], "pag_scale must be a number, got 'much'"),
    "digits without end": (["--unet-option", "pag_scale=" + "9" * 5000], "pag_scale must be a number"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_one_sentence_before_a_model_is_loaded(draw, tmp_path, monkeypatch, arguments, message):
    def too_late(*arguments):
        raise AssertionError("the model was loaded before its arguments were checked")

    monkeypatch.setattr(prepare, "load_pipeline", too_late)
    refused = draw(*arguments)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert message in refused.err and refused.err.startswith("sd-ext: ")
    assert not list(tmp_path.iterdir())


def test_an_option_that_the_network_cannot_have(draw, tmp_path):
    refused = draw("--unet-option", "pag_scale=3", "--unet-option", "pag_layers=nowhere")
    assert (refused.code, refused.out) == (2, "")
    assert "no self-attention in 'nowhere'" in refused.err
    assert not list(tmp_path.iterdir())
