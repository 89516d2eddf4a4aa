"""The files mean the same everywhere: to Diffusers' own loader, to a reader written from the format, to this one."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sd_ext.lora import ModuleName, apply_lora, from_peft, merge, read_lora, save_lora, with_one_alpha

from .. import adapters, models


def assert_same_outputs(made, expected, atol=1e-4):
    got = models.outputs(made)
    assert got.keys() == expected.keys()
    for part in expected:
        torch.testing.assert_close(got[part], expected[part], atol=atol, rtol=1e-5)


def loaded_by_diffusers(shape, path):
    made = copy.deepcopy(models.tiny_models(shape))
    models.pipeline(shape, made).load_lora_weights(str(path))
    return made


def assert_same_loras(one, other):
    assert list(one.adapters) == list(other.adapters)
    for module, adapter in one.adapters.items():
        twin = other.adapters[module]
        assert (adapter.kind, adapter.alpha, adapter.tensors.keys()) == (twin.kind, twin.alpha, twin.tensors.keys())
        assert all(torch.equal(adapter.tensors[name], twin.tensors[name]) for name in adapter.tensors), module


def test_the_loras_do_something(trained):
    plain = models.outputs(models.tiny_models(trained.shape))
    assert all((plain[part] - trained.outputs[part]).abs().max() > 0.1 for part in plain)


@pytest.mark.parametrize("format", ["kohya", pytest.param("diffusers", marks=pytest.mark.slow)])
def test_diffusers_loads_our_file_at_the_same_strength(trained, format, tmp_path):
    save_lora(trained.lora, tmp_path / "a.safetensors", format)
    assert_same_outputs(loaded_by_diffusers(trained.shape, tmp_path / "a.safetensors"), trained.outputs)


def test_a_reader_written_from_kohyas_format_finds_the_same(trained, tmp_path):
    for keep_alphas in (False, True):
        save_lora(trained.lora, tmp_path / "a.safetensors", "kohya", keep_alphas=keep_alphas)
        made = adapters.independent_kohya(load_file(tmp_path / "a.safetensors"), trained.shape)
        assert_same_outputs(made, trained.outputs)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_our_reader_finds_the_same(trained, format, tmp_path):
    save_lora(trained.lora, tmp_path / "a.safetensors", format)
    made = copy.deepcopy(models.tiny_models(trained.shape))
    lora = read_lora(tmp_path / "a.safetensors")
    assert lora.base == trained.shape or trained.shape == "sd21"  # SD 2.1's width tells it, and the tiny one has not
    apply_lora(made, lora)
    assert_same_outputs(made, trained.outputs)


def test_kohya_to_diffusers_to_kohya_is_the_same_file(trained, tmp_path):
    first, between, second = tmp_path / "1" / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "a.safetensors"
    save_lora(trained.lora, first, "kohya", metadata={"ss_seed": "7", "ss_tag": "naïve “tags” \\ \n"})
    save_lora(read_lora(first), between, "diffusers")
    save_lora(read_lora(between), second, "kohya")
    assert first.read_bytes() == second.read_bytes()


def test_diffusers_to_kohya_to_diffusers_keeps_every_bit_of_the_factors(trained, tmp_path):
    save_lora(trained.lora, tmp_path / "a.safetensors", "diffusers")
    save_lora(
        read_lora(tmp_path / "a.safetensors"), tmp_path / "k.safetensors", "kohya", base=trained.shape, keep_alphas=True
    )
    save_lora(read_lora(tmp_path / "k.safetensors"), tmp_path / "b.safetensors", "diffusers")
    assert_same_loras(read_lora(tmp_path / "b.safetensors"), trained.lora)
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert one.keys() == other.keys()


def test_files_are_the_same_bytes_every_time(sd15, tmp_path):
    for name in ("1/a", "2/a"):
        save_lora(sd15.lora, tmp_path / f"{name}.safetensors", "kohya")
    assert (tmp_path / "1/a.safetensors").read_bytes() == (tmp_path / "2/a.safetensors").read_bytes()


def test_one_alpha_changes_nothing_but_the_numbers(trained):
    one = with_one_alpha(trained.lora)
    assert all(len({a.alpha for m, a in one.adapters.items() if m.part == part}) == 1 for part in one.parts)
    for module, adapter in trained.lora.adapters.items():
        torch.testing.assert_close(one.delta(module), adapter.product(), rtol=1e-6, atol=1e-7)


def test_deviation_diffusers_gives_minority_alphas_of_kohya_files_the_majoritys(sd15, tmp_path):
    """A right file, read wrongly: why `save` gives each part one alpha unless told to keep them."""
    save_lora(sd15.lora, tmp_path / "a.safetensors", "kohya", keep_alphas=True)
    got = models.outputs(loaded_by_diffusers("sd15", tmp_path / "a.safetensors"))
    assert (got["unet"] - sd15.outputs["unet"]).abs().max() > 0.01


def test_deviation_diffusers_cannot_read_text_encoders_without_out_proj_from_kohya_files(tmp_path):
    made = adapters.trained("sd15", text={"target_modules": ["q_proj", "v_proj"]})
    lora, expected = from_peft(made, base="sd15"), models.outputs(made)
    save_lora(lora, tmp_path / "k.safetensors", "kohya")
    with pytest.raises(ValueError, match="infer state dict type"):
        loaded_by_diffusers("sd15", tmp_path / "k.safetensors")
    # Neither the file nor our reader, nor Diffusers' own format, loses anything.
    assert_same_outputs(adapters.independent_kohya(load_file(tmp_path / "k.safetensors"), "sd15"), expected)
    save_lora(read_lora(tmp_path / "k.safetensors"), tmp_path / "d.safetensors", "diffusers")
    assert_same_outputs(loaded_by_diffusers("sd15", tmp_path / "d.safetensors"), expected)


def test_rank_stabilised_strengths_are_written_as_alphas_that_all_readers_know(tmp_path):
    made = adapters.trained("sd15", unet={"use_rslora": True}, text={"use_rslora": True})
    expected, lora = models.outputs(made), from_peft(made, base="sd15")
    assert lora.adapters[ModuleName("unet", "conv_in")].scale == pytest.approx(6 / 3**0.5)
    for format in ("kohya", "diffusers"):
        save_lora(lora, tmp_path / "a.safetensors", format)
        assert_same_outputs(loaded_by_diffusers("sd15", tmp_path / "a.safetensors"), expected)


def test_dora_through_diffusers_files(tmp_path):
    made = adapters.trained("sd15", unet={"use_dora": True}, text={"use_dora": True})
    expected, lora = models.outputs(made), from_peft(made, base="sd15")
    save_lora(lora, tmp_path / "a.safetensors", "diffusers")
    assert_same_outputs(loaded_by_diffusers("sd15", tmp_path / "a.safetensors"), expected)
    save_lora(lora, tmp_path / "k.safetensors", "kohya", keep_alphas=True)
    again = read_lora(tmp_path / "k.safetensors")
    assert_same_loras(again, lora)
    ours = copy.deepcopy(models.tiny_models("sd15"))
    apply_lora(ours, again)
    assert_same_outputs(ours, expected)


def test_deviation_diffusers_drops_dora_of_kohya_files(tmp_path):
    made = adapters.trained("sd15", unet={"use_dora": True, "target_modules": adapters.ATTENTION}, text={"r": 2})
    expected, lora = models.outputs(made), from_peft(made, base="sd15")
    save_lora(lora, tmp_path / "k.safetensors", "kohya")
    names = {key.partition(".")[2] for key in load_file(tmp_path / "k.safetensors")}
    assert names == {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"}
    got = models.outputs(loaded_by_diffusers("sd15", tmp_path / "k.safetensors"))
    assert (got["unet"] - expected["unet"]).abs().max() > 0.01
    ours = copy.deepcopy(models.tiny_models("sd15"))
    apply_lora(ours, read_lora(tmp_path / "k.safetensors"))
    assert_same_outputs(ours, expected)


def test_a_merge_loads_as_the_sum(sd15, tmp_path):
    half = merge([(sd15.lora, 0.25), (sd15.lora, 0.75)])
    save_lora(half, tmp_path / "m.safetensors", "kohya")
    assert_same_outputs(loaded_by_diffusers("sd15", tmp_path / "m.safetensors"), sd15.outputs)


def test_the_header_says_what_peft_needs_and_kohyas_has_none_of_it(sd15, tmp_path):
    save_lora(sd15.lora, tmp_path / "d.safetensors", "diffusers", metadata={"note": "kept"})
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        header = file.metadata()
        assert all(".text_model." in key for key in file.keys() if key.startswith("text_encoder"))  # noqa: SIM118
    settings = json.loads(header["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"], header["note"]) == (3, 6.0, "kept")
    save_lora(read_lora(tmp_path / "d.safetensors"), tmp_path / "k.safetensors", "kohya", base="sd15")
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        assert "lora_adapter_metadata" not in file.metadata()
        assert file.metadata()["note"] == "kept"
