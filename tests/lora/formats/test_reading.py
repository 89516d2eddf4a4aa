"""Every format there is, and what is wrong with files that are wrong."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.lora import ModuleName, from_peft, read_lora, save_lora

from .. import models

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYER = "encoder.layers.0.self_attn"
FLAT = f"lora_unet_{ATTN.replace('.', '_')}"


def factors(rank=2, out=6, inside=4):
    draw = torch.Generator().manual_seed(rank)
    return torch.randn(rank, inside, generator=draw), torch.randn(out, rank, generator=draw)


DOWN, UP = factors()


@pytest.mark.parametrize(
    ("down", "up", "module"),
    [
        (f"unet.{ATTN}.to_q.lora_A.weight", f"unet.{ATTN}.to_q.lora_B.weight", ("unet", f"{ATTN}.to_q")),
        (f"unet.{ATTN}.to_q.lora.down.weight", f"unet.{ATTN}.to_q.lora.up.weight", ("unet", f"{ATTN}.to_q")),
        (f"base_model.model.{ATTN}.to_k.lora_A.weight", f"base_model.model.{ATTN}.to_k.lora_B.weight",
         ("unet", f"{ATTN}.to_k")),
        (f"{ATTN}.to_q.lora_A.default.weight", f"{ATTN}.to_q.lora_B.default.weight", ("unet", f"{ATTN}.to_q")),
        (f"unet.{ATTN}.processor.to_q_lora.down.weight", f"unet.{ATTN}.processor.to_q_lora.up.weight",
         ("unet", f"{ATTN}.to_q")),
        (f"{ATTN}.processor.to_out_lora.down.weight", f"{ATTN}.processor.to_out_lora.up.weight",
         ("unet", f"{ATTN}.to_out.0")),
        (f"text_encoder.text_model.{LAYER}.q_proj.lora_linear_layer.down.weight",
         f"text_encoder.text_model.{LAYER}.q_proj.lora_linear_layer.up.weight", ("text_encoder", f"{LAYER}.q_proj")),
        (f"text_encoder.text_model.{LAYER}.to_out_lora.down.weight",
         f"text_encoder.text_model.{LAYER}.to_out_lora.up.weight", ("text_encoder", f"{LAYER}.out_proj")),
        (f"text_encoder_2.text_model.{LAYER}.q_proj.lora_A.weight",
         f"text_encoder_2.text_model.{LAYER}.q_proj.lora_B.weight", ("text_encoder_2", f"{LAYER}.q_proj")),
        # What transformers 5 makes of Diffusers' own scripts: text_model is missing.
        (f"text_encoder.{LAYER}.q_proj.lora_A.weight", f"text_encoder.{LAYER}.q_proj.lora_B.weight",
         ("text_encoder", f"{LAYER}.q_proj")),
        (f"{FLAT}_to_q.lora_down.weight", f"{FLAT}_to_q.lora_up.weight", ("unet", f"{ATTN}.to_q")),
        (f"lora_te_text_model_{LAYER.replace('.', '_')}_k_proj.lora_down.weight",
         f"lora_te_text_model_{LAYER.replace('.', '_')}_k_proj.lora_up.weight", ("text_encoder", f"{LAYER}.k_proj")),
    ],
)  # fmt: skip
def test_spellings(down, up, module):
    lora = read_lora({down: DOWN, up: UP})
    assert list(lora.adapters) == [module]
    torch.testing.assert_close(lora.delta(module), UP @ DOWN)  # no alpha anywhere: strength 1


def test_alphas_of_both_kinds():
    kohya = read_lora({f"{FLAT}_to_q.lora_down.weight": DOWN, f"{FLAT}_to_q.lora_up.weight": UP,
                       f"{FLAT}_to_q.alpha": torch.tensor(5.0)})  # fmt: skip
    assert kohya.adapters["unet", f"{ATTN}.to_q"].scale == 2.5  # type: ignore[index]
    keys = [f"unet.{ATTN}.{name}.lora_{side}.weight" for name in ("to_q", "to_k") for side in "AB"]
    settings = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {f"{ATTN}.to_k": 3}, "unet.use_rslora": True}
    header = {"lora_adapter_metadata": json.dumps(settings)}
    made = read_lora(dict(zip(keys, (DOWN, UP, DOWN, UP), strict=True)), header)
    scales = {module.path.split(".")[-1]: adapter.scale for module, adapter in made.adapters.items()}
    assert scales == pytest.approx({"to_q": 8 / 2**0.5, "to_k": 3 / 2**0.5})


def test_alpha_patterns_match_as_pefts_do():
    settings = {"text_encoder.lora_alpha": 1, "text_encoder.alpha_pattern": {"^text_model.encoder.layers.0.mlp.fc1": 9}}
    header = {"lora_adapter_metadata": json.dumps(settings)}
    path = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    lora = read_lora({f"{path}.lora_A.weight": DOWN, f"{path}.lora_B.weight": UP}, header)
    assert [adapter.alpha for adapter in lora] == [9]


@pytest.mark.parametrize("config", [LoraConfig(r=3, lora_alpha=2, use_rslora=True, target_modules=["to_q", "conv1"],
                                               alpha_pattern={"conv1": 5}, init_lora_weights=False),
                                    LoHaConfig(r=3, alpha=2, target_modules=["to_q", "conv1"], init_weights=False,
                                               alpha_pattern={"conv1": 5}, use_effective_conv2d=True)])  # fmt: skip
def test_peft_folders(config, tmp_path):
    model = get_peft_model(models.tiny_unet("sd15"), config)
    model.save_pretrained(tmp_path / "unet")
    expected = from_peft({"unet": model})
    assert len(expected) > 20
    for folder in (tmp_path / "unet", tmp_path):
        lora = read_lora(folder)
        assert lora.adapters.keys() == expected.adapters.keys()
        for module in expected.adapters:
            torch.testing.assert_close(lora.delta(module), expected.delta(module))


def test_locon_in_three_factors_is_the_same_convolution():
    draw = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(s, generator=draw) for s in ((2, 4, 1, 1), (2, 2, 3, 3), (6, 2, 1, 1)))
    names = (f"lora_unet_down_blocks_0_resnets_0_conv1.lora_{name}.weight" for name in ("down", "mid", "up"))
    lora = read_lora(dict(zip(names, (down, mid, up), strict=True)))
    picture = torch.randn(1, 4, 8, 8, generator=draw)
    convolve = torch.nn.functional.conv2d
    expected = convolve(convolve(convolve(picture, down), mid, padding=1), up)
    (module,) = lora.adapters
    torch.testing.assert_close(convolve(picture, lora.delta(module), padding=1), expected, rtol=1e-4, atol=1e-5)


def test_headers_and_bundled_embeddings_are_kept(tmp_path):
    bundled = {"bundle_emb.style.string_to_param.*": torch.ones(2, 4)}
    tensors = {f"{FLAT}_to_q.lora_down.weight": DOWN, f"{FLAT}_to_q.lora_up.weight": UP, **bundled}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_tag_frequency": "{}", "sshs_model_hash": "old"})
    lora = read_lora(tmp_path / "a.safetensors")
    assert (lora.metadata, lora.base) == ({"ss_tag_frequency": "{}"}, "sd15")
    save_lora(lora, tmp_path / "b.safetensors", "kohya")
    written = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_pefts_settings_in_a_kohya_file_change_nothing_and_are_not_passed_on(tmp_path):
    tensors = {f"{FLAT}_to_q.lora_down.weight": DOWN, f"{FLAT}_to_q.lora_up.weight": UP,
               f"{FLAT}_to_q.alpha": torch.tensor(5.0)}  # fmt: skip
    lora = read_lora(tensors, {"lora_adapter_metadata": '{"unet.lora_alpha": 99}'})
    assert ([adapter.alpha for adapter in lora], lora.metadata) == ([5.0], {})


def test_diffusers_own_conversion_to_kohya_is_read_for_what_it_says():
    """It writes alpha = rank and numbers SD 1.x's only text encoder; names are right, so that all of it is read."""
    made = {f"unet.{ATTN}.to_q.lora_A.weight": DOWN, f"unet.{ATTN}.to_q.lora_B.weight": UP,
            f"text_encoder.text_model.{LAYER}.q_proj.lora_A.weight": DOWN,
            f"text_encoder.text_model.{LAYER}.q_proj.lora_B.weight": UP}  # fmt: skip
    lora = read_lora(convert_state_dict_to_kohya(made))
    assert lora.base == "sd15"
    assert list(lora.adapters) == [("text_encoder", f"{LAYER}.q_proj"), ("unet", f"{ATTN}.to_q")]


KEY = f"unet.{ATTN}.to_q"
GOOD = {f"{KEY}.lora_A.weight": DOWN, f"{KEY}.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "no LoRA in it"),
        ({f"{KEY}.lora_A.weight": DOWN}, rf"{KEY}: a lora cannot be made of down"),
        ({**GOOD, f"{KEY}.lora_B.weight": UP[:, :1]}, f"{KEY}: tensors do not fit together"),
        ({**GOOD, f"{KEY}.lora_B.weight": UP * float("nan")}, f"{KEY}: up holds values that are not finite"),
        ({**GOOD, f"{KEY}.lora_B.weight": UP.to(torch.int8)}, "not floating-point"),
        ({**GOOD, f"{KEY}.lora_C.weight": UP}, r"lora_C.weight'; did you mean .*'lora_A.weight'"),
        ({**GOOD, f"{KEY}.diff": UP}, "is both a diff and a lora"),
        ({**GOOD, f"{KEY}.gradient": UP}, r"unknown kind of tensor"),
        ({**GOOD, "unet.down_blocks.0.atentions.0.proj_in.lora_A.weight": DOWN}, "did you mean 'unet.*attentions"),
        ({**GOOD, f"unet.{ATTN}.processor.to_q_lora.down.weight": DOWN}, "is given twice"),
        ({**GOOD, f"{KEY}.hada_w1_a": UP}, "both a"),
        ({**GOOD, f"{KEY}.alpha": torch.ones(2)}, "not one number"),
        ({**GOOD, f"{KEY}.alpha": torch.tensor(float("inf"))}, "alpha is inf"),
        ({**GOOD, f"{KEY}.lora_magnitude_vector": torch.ones(5)}, "dora .* does not fit"),
        ({f"{KEY}.alpha": torch.ones(())}, "no LoRA in it"),
        ({**GOOD, f"unet.{ATTN}.to_k.alpha": torch.ones(())}, "to_k: only alpha is there, and no factors"),
        # What Diffusers' convert_all_state_dict_to_peft leaves of a U-Net's old names.
        ({f"unet.{ATTN}.q_proj.lora_A.weight": DOWN}, "q_proj'; did you mean 'unet.down_blocks"),
        ({"transformer.x_embedder.lora_A.weight": DOWN, "transformer.x_embedder.lora_B.weight": UP}, "transformer"),
        ({f"{FLAT}_to_q.lora_down.weight": DOWN, "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
          ".lora_up.weight": UP}, "is given twice: as lora_unet_down.* and as lora_unet_input"),
        ({f"{FLAT}_to_q.lora_down.weight": DOWN[:0], f"{FLAT}_to_q.lora_up.weight": UP[:, :0]}, "down is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tensors, complaint):
    with pytest.raises(InputError, match=complaint):
        read_lora(tensors)


@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt", "pth"])
def test_pickles_are_never_opened(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(f"cposix\nsystem\n(S'touch {tmp_path}/opened'\ntR.".encode())
    for source in (path, tmp_path):
        with pytest.raises(InputError, match=r"pickle.* code .*safetensors"):
            read_lora(source)
    assert not (tmp_path / "opened").exists()


def test_files_and_folders_that_are_not_there_or_not_whole(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        read_lora(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="neither"):
        read_lora(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_lora(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 \.safetensors files"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
    with pytest.raises(InputError, match="VERA"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(InputError, match="adapter_config"):
        read_lora(tmp_path)


def test_settings_that_are_damaged_are_said():
    for settings in ("{", "[]", '{"unet.lora_alpha": "much"}'):
        with pytest.raises(InputError, match=r"header|settings"):
            read_lora(GOOD, {"lora_adapter_metadata": settings})


def test_an_unknown_module_or_adapter_comes_with_near_ones(sd15):
    with pytest.raises(UnknownNameError, match=r"unet\.conv_in"):
        sd15.lora.delta(("unet", "conv_im"))
    with pytest.raises(UnknownNameError, match="default"):
        from_peft(sd15.models, adapter="defualt")
    with pytest.raises(InputError, match="carry no peft adapter"):
        from_peft(models.tiny_models("sd15"))
    assert from_peft({"unet": sd15.models["unet"]}).parts == ["unet"]
    assert ModuleName("unet", "conv_in") in from_peft(sd15.models).adapters
