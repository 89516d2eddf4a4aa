"""The file itself: whole or not there, with the right header, in any precision, losses reported."""

from __future__ import annotations

import errno
import hashlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.lora import Adapter, Lora, ModuleName, read_lora, save_lora
from sd_ext.lora.formats.body import Body

ONE = ModuleName("unet", "down_blocks.0.attentions.0.proj_in")


def lora(up=1.0, alpha=1.0, rank=1, module=ONE, **given):
    return Lora(
        {module: Adapter("lora", {"down": torch.ones(rank, 4), "up": torch.full((4, rank), up)}, alpha)}, **given
    )


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_kohyas_header_has_what_readers_look_for(tmp_path):
    made = lora(alpha=8.0, rank=2, module=ModuleName("unet", "down_blocks.1.attentions.0.proj_in"))
    save_lora(made, tmp_path / "style.safetensors", "kohya", base="sdxl", metadata={"ss_seed": "7"})
    made = header(tmp_path / "style.safetensors")
    hashes = made.pop("sshs_model_hash"), made.pop("sshs_legacy_hash")
    assert made == {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "8",
        "ss_network_args": "{}",
        "ss_output_name": "style",
        "ss_seed": "7",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "style",
        "modelspec.resolution": "1024x1024",
        "modelspec.prediction_type": "epsilon",
    }
    assert (len(hashes[0]), len(hashes[1])) == (64, 8)


def test_sd2_by_velocity_is_the_768_model(tmp_path):
    save_lora(lora(), tmp_path / "a.safetensors", "kohya", base="sd21", metadata={"modelspec.prediction_type": "v"})
    made = header(tmp_path / "a.safetensors")
    assert made["ss_v2"] == "True"
    assert made["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert made["modelspec.resolution"] == "768x768"


def test_hashes_are_those_of_the_file_as_it_is_trained(tmp_path):
    """A file with ss_ entries alone: SHA-256 of what follows the header; of 64 KiB after 1 MiB, 8 digits."""
    path = tmp_path / "a.safetensors"
    big = {ONE: Adapter("lora", {"down": torch.randn(300, 2000), "up": torch.randn(4, 300)}, 1.0)}
    save_lora(Lora(big), path, "kohya", base="sd15", metadata={"modelspec.author": "someone"})
    made = header(path)
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert made["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    bare = save(load_file(path), {key: value for key, value in made.items() if key.startswith("ss_")})
    assert made["sshs_legacy_hash"] == hashlib.sha256(bare[1 << 20 :][: 1 << 16]).hexdigest()[:8]
    save_lora(Lora(big), path, "kohya", base="sd15", metadata={"modelspec.author": "someone else"})
    assert header(path)["sshs_legacy_hash"] == made["sshs_legacy_hash"]


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_changed_tensors_are_named_where_the_header_tells_of_others(tmp_path, caplog, format):
    """One bit is enough; other entries of the header may be edited, as titles are."""
    path = tmp_path / "a.safetensors"
    save_lora(lora(), path, format)
    read_lora(path)
    save_file(load_file(path), path, {**header(path), "modelspec.title": "mine"})
    read_lora(path)
    assert not caplog.records
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    read_lora(path)
    assert [f"{path} is damaged" in message for message in caplog.messages] == [True]
    save_file(load_file(path), path, {"format": "pt"})  # where nothing is told, nothing is compared
    read_lora(path)
    assert len(caplog.messages) == 1


def test_alpha_is_written_as_it_is_and_not_as_the_rank(tmp_path):
    for alpha in (0.5, 1.0, 11.313708):
        save_lora(lora(alpha=alpha, rank=4), tmp_path / "a.safetensors", "kohya", dtype=torch.float16)
        (made,) = read_lora(tmp_path / "a.safetensors")
        assert made.alpha == pytest.approx(alpha, rel=1e-7)


def test_alpha_over_rank_outlives_diffusers_format(tmp_path):
    save_lora(lora(alpha=8.0, rank=4), tmp_path / "a.safetensors", "diffusers")
    (made,) = read_lora(tmp_path / "a.safetensors")
    assert made.scale == 2.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_precisions(dtype, format, tmp_path):
    assert save_lora(lora(up=0.3), tmp_path / "a.safetensors", format, dtype=dtype) == ""
    (made,) = read_lora(tmp_path / "a.safetensors")
    assert {tensor.dtype for tensor in made.tensors.values()} == {dtype}
    assert torch.equal(made.up, torch.full((4, 1), 0.3).to(dtype))


def test_an_overflow_is_refused_by_name_and_what_was_there_stays(tmp_path):
    save_lora(lora(), tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"unet\..*proj_in\.lora_B\.weight holds 7e\+04, too large for torch.float16"):
        save_lora(lora(up=7e4), tmp_path / "a.safetensors", dtype=torch.float16)
    assert save_lora(lora(up=7e4), tmp_path / "b.safetensors", dtype=torch.bfloat16) == ""
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_underflow_is_reported_and_refused_where_it_would_undo_a_module(tmp_path):
    with pytest.raises(InputError, match="would become 0"):
        save_lora(lora(up=1e-9), tmp_path / "a.safetensors", dtype=torch.float16)
    some = lora()
    some.adapters[ONE].up[1] = 1e-9
    note = save_lora(some, tmp_path / "a.safetensors", dtype=torch.float16)
    assert note == "1 of 8 values, up to 1e-09, are too small for float16 and became 0"


@pytest.mark.parametrize("step", ["add", "fill"])
def test_a_full_disk_leaves_what_was_there(step, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_lora(lora(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Body, step, fail)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        save_lora(lora(up=2.0), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(InputError, match=r"\.safetensors only"):
        save_lora(lora(), tmp_path / "a.bin")
    with pytest.raises(UnknownNameError, match="kohya"):
        save_lora(lora(), tmp_path / "a.safetensors", "khoya")
    with pytest.raises(UnknownNameError, match="sdxl"):
        save_lora(lora(), tmp_path / "a.safetensors", "kohya", base="sdlx")
    with pytest.raises(UnknownNameError, match="text_encoder"):
        Lora({("text_encodr", "mlp"): next(iter(lora()))})
    with pytest.raises(InputError, match="no adapter"):
        Lora({})
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.arange(32.0).reshape(8, 4)
    shared = Adapter("lora", {"down": whole[:2], "up": whole[:4, :2]}, 1.0)
    made = Lora({ONE: shared, ModuleName("unet", "conv_out"): shared})
    for format in ("kohya", "diffusers"):
        save_lora(made, tmp_path / "a.safetensors", format)
        for module in made.adapters:
            assert torch.equal(read_lora(tmp_path / "a.safetensors").delta(module), made.delta(module))


def test_one_alpha_that_does_not_fit_the_type_is_said(tmp_path):
    half = {"down": torch.ones(1, 4).half(), "up": torch.full((4, 1), 6e4).half()}
    paths = ("down_blocks.0.attentions.0.proj_in", "conv_in", "conv_out")
    mixed = {ModuleName("unet", path): Adapter("lora", half, 9.0 if path == "conv_out" else 1.0) for path in paths}
    with pytest.raises(InputError, match=r"unet.conv_out: .* keep the alphas"):
        save_lora(Lora(mixed), tmp_path / "a.safetensors", "kohya")
    save_lora(Lora(mixed), tmp_path / "a.safetensors", "kohya", keep_alphas=True)
    assert sorted(adapter.alpha for adapter in read_lora(tmp_path / "a.safetensors")) == [1, 1, 9]
