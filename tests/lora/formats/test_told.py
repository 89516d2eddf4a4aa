"""What is said of files as people have them is true: which program reads them, what they are for, what is lost."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_ext.errors import InputError
from sd_ext.lora import describe, read_lora, save_lora
from tests.models.original.test_told import DISGUISED, FILES, TITLES

from .. import models

ATTN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
FLAT = f"lora_unet_{ATTN.replace('.', '_')}"
TEXT = "lora_te_text_model_encoder_layers_0"


def pair(name, out=8, inside=8, rank=2, sides=("lora_down.weight", "lora_up.weight"), **more):
    draw = torch.Generator().manual_seed(len(name))
    shapes = dict(zip(sides, ((rank, inside), (out, rank)), strict=True))
    made = {f"{name}.{side}": torch.randn(shape, generator=draw) for side, shape in shapes.items()}
    return made | {f"{name}.{key}": tensor for key, tensor in more.items()}


PEFT = "lora_A.weight", "lora_B.weight"
READ = {
    "kohya": pair(f"{FLAT}_to_q"),
    "kohya, alphas": pair(f"{FLAT}_to_q", alpha=torch.tensor(1.0)),
    "kohya, mixed alphas": {**pair(f"{FLAT}_to_q", alpha=torch.tensor(1.0)), **pair(f"{FLAT}_to_k", inside=8),
                            **pair(f"{FLAT}_to_v", alpha=torch.tensor(2.0))},
    "kohya, words": {**pair(f"{FLAT}_to_q"), "bundle_emb.w.string_to_param.*": torch.ones(1, 16)},
    "kohya, text without out_proj": {**pair(f"{TEXT}_self_attn_q_proj", 16, 16), **pair(f"{TEXT}_mlp_fc1", 24, 16)},
    "kohya, queries of the text only": pair(f"{TEXT}_self_attn_q_proj", 16, 16),
    "kohya, text": {**pair(f"{TEXT}_self_attn_q_proj", 16, 16), **pair(f"{TEXT}_self_attn_out_proj", 16, 16)},
    "LyCORIS": pair(f"lycoris_{ATTN.replace('.', '_')}_to_q"),
    "Diffusers": pair(f"unet.{ATTN}.to_q", sides=PEFT),
    "Diffusers, older": pair(f"unet.{ATTN}.to_q", sides=("lora.down.weight", "lora.up.weight")),
    "Diffusers, alphas": pair(f"unet.{ATTN}.to_q", sides=PEFT, alpha=torch.tensor(1.0)),
    "Diffusers, a bias": {**pair("unet.down_blocks.0.resnets.0.time_emb_proj", 8, 32, sides=PEFT),
                          "unet.down_blocks.0.resnets.0.time_emb_proj.lora_B.bias": torch.arange(8.0)},
    "no beginning": pair(f"{ATTN}.to_q", sides=PEFT),
    "peft": pair(f"base_model.model.{ATTN}.to_q", sides=PEFT),
    "ComfyUI": pair("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
}  # fmt: skip


def loaded(path):
    """The modules that Diffusers' own loader changes, and by what."""
    made = copy.deepcopy(models.tiny_models("sd15"))
    try:
        models.pipeline("sd15", made).load_lora_weights(str(path))
    except Exception:  # whatever its reason, it does not read the file
        return {}
    layers = {(part, name): layer for part, model in made.items() for name, layer in model.named_modules()}
    found = {}
    for (part, name), layer in layers.items():
        if "default_0" in getattr(layer, "lora_A", ()):
            found[part, name.removeprefix("text_model.")] = layer.get_delta_weight("default_0")
            if layer.lora_bias["default_0"]:
                found[part, f"{name}.bias"] = layer.lora_B["default_0"].bias.data * layer.scaling["default_0"]
    return found


@pytest.mark.parametrize("name", READ)
def test_what_info_says_of_diffusers_is_what_diffusers_does(name, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(READ[name], path)
    lora = read_lora(path)
    told = {reader.program: reader.how for reader in describe(path).readers}
    changes = loaded(path)
    right = changes.keys() == lora.adapters.keys() and all(
        torch.allclose(lora.delta(module), change, atol=1e-5) for module, change in changes.items()
    )
    assert (told["Diffusers"] == "yes") == right, told
    assert told["Diffusers"].startswith("no") <= (not changes)
    assert (told["A1111"] == "yes") == all(key.startswith(("lora_", "lycoris_", "bundle")) for key in READ[name])
    if not lora.plain:
        return
    save_lora(lora, tmp_path / "b.safetensors", "diffusers")  # and so it always is
    assert {reader.how for reader in describe(tmp_path / "b.safetensors").readers if reader.program == "Diffusers"} == {
        "yes"
    }
    changes = loaded(tmp_path / "b.safetensors")
    assert changes.keys() == lora.adapters.keys()
    assert all(torch.allclose(lora.delta(module), change, atol=1e-5) for module, change in changes.items())


def test_comfyui_finds_alphas_among_tensors_and_not_in_the_header(tmp_path):
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1})}
    for name, key, wrong in (("Diffusers", "a", True), ("Diffusers, alphas", "b", False)):
        save_file(READ[name], tmp_path / f"{key}.safetensors", header)
        assert [adapter.scale for adapter in read_lora(tmp_path / f"{key}.safetensors")] == [0.5]
        told = {reader.program: reader.how for reader in describe(tmp_path / f"{key}.safetensors").readers}
        assert told["ComfyUI"].startswith("at another strength") == wrong


# ---- which model


WIDE = f"{FLAT.replace('attn1', 'attn2')}_to"


def test_modules_of_several_models_are_refused():
    one, two, large = (pair(f"{WIDE}_{side}", 320, width) for side, width in (("k", 768), ("v", 1024), ("k", 2048)))
    for tensors, names in (
        ({**one, **two}, "Stable Diffusion 1.x and Stable Diffusion 2.x"),
        ({**two, **large}, "Stable Diffusion XL and Stable Diffusion 2.x"),
        ({**one, **pair("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, 1280)},
         "Stable Diffusion XL or the refiner of Stable Diffusion XL and Stable Diffusion 1.x"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="it holds modules of several models, and none takes all") as error:
            read_lora(tensors)
        assert all(title in str(error.value) for title in names.split(" and "))


def test_a_header_that_was_wrong_of_the_base_is_not_written_again(tmp_path, caplog):
    wrong = {"ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
             "modelspec.resolution": "1024x1024", "ss_seed": "7"}  # fmt: skip
    lora = read_lora(pair(f"{WIDE}_k", 320, 768), wrong)
    assert "its header says Stable Diffusion XL" in caplog.text
    for format in ("kohya", "diffusers"):
        caplog.clear()
        save_lora(lora, tmp_path / "a.safetensors", format)
        again = read_lora(tmp_path / "a.safetensors")
        assert not caplog.text and again.base == "sd15" and again.metadata["ss_seed"] == "7"
        assert "1024x1024" not in again.metadata.values()


# ---- what changes nothing, and what is missing


def test_modules_of_rank_0_are_left_out_by_name(caplog):
    lora = read_lora({**pair(f"{FLAT}_to_q", rank=0, alpha=torch.tensor(4.0)), **pair(f"{FLAT}_to_k")})
    assert [module.path for module in lora.adapters] == [f"{ATTN}.to_k"]
    assert f"left out 1 modules of rank 0, which change nothing: unet.{ATTN}.to_q" in caplog.text
    with pytest.raises(InputError, match="down is empty"):
        read_lora(pair(f"{FLAT}_to_q", rank=0))
    with pytest.raises(InputError, match="up is empty"):
        read_lora({**pair(f"{FLAT}_to_q"), **pair(f"{FLAT}_to_k"), f"{FLAT}_to_k.lora_up.weight": torch.ones(8, 0)})


def test_a_file_that_does_nothing_is_told(caplog):
    right = {**pair(f"{FLAT}_to_q"), **pair(f"{FLAT}_to_k")}
    nothing = {key: tensor * ("lora_up" not in key) for key, tensor in right.items()}
    for tensors in (nothing, {**right, **{f"{FLAT}_to_{n}.alpha": torch.tensor(0) for n in "qk"}}):
        caplog.clear()
        read_lora(tensors)
        assert "none of its modules changes anything" in caplog.text
    caplog.clear()
    read_lora({**nothing, f"{FLAT}_to_k.lora_up.weight": right[f"{FLAT}_to_k.lora_up.weight"]})
    assert not caplog.text


def test_a_part_without_strengths_beside_others_is_told(caplog):
    for settings in ({"text_encoder.lora_alpha": 8, "text_encoder.r": 2}, {"lora_alpha": 8, "r": 2}):
        caplog.clear()
        (adapter,) = read_lora(READ["Diffusers"], {"lora_adapter_metadata": json.dumps(settings)})
        assert adapter.scale == 1
        assert "its header has settings of peft, and none for unet, which is read at strength 1" in caplog.text


# ---- for other models


OTHERS = {
    "lora_unet_double_blocks_0_img_attn_qkv": "FLUX",
    "transformer.single_transformer_blocks.3.attn.to_q": "FLUX",
    "lora_transformer_single_transformer_blocks_0_attn_to_q": "FLUX",
    "diffusion_model.single_blocks.0.linear1": "FLUX",
    "transformer.transformer_blocks.3.attn.add_q_proj": r"a transformer \(Stable Diffusion 3, FLUX",
    "transformer_blocks.0.attn.to_q": r"a transformer \(Stable Diffusion 3, FLUX",
    "lora_unet_transformer_blocks_0_attn_to_q": r"a transformer \(Stable Diffusion 3, FLUX",
    "lora_unet_joint_blocks_0_context_block_attn_qkv": "Stable Diffusion 3",
    "diffusion_model.transformer_blocks.0.img_mlp.net.2": "Qwen-Image",
    "transformer.transformer_blocks.0.txt_mlp.net.2": "Qwen-Image",
    "diffusion_model.blocks.0.self_attn.q": "a video model",
    "lora_unet_blocks_0_self_attn_q": "a video model",
    "transformer.blocks.0.attn1.to_q": "a video model",
    "diffusion_model.layers.0.attention.qkv": "Lumina or Z-Image",
    "lora_unet_layers_0_attention_qkv": "Lumina or Z-Image",
    "unet.down_blocks.0.6.attention.attn.in_proj": "Stable Cascade",
    "lora_prior_unet_down_blocks_0_6_attention_attn_in_proj": "Stable Cascade",
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q": "a motion mod",
    "base_model.model.model.layers.3.self_attn.q_proj": "a language model",
    "base_model.model.transformer.h.0.attn.c_attn": "a language model",
    "text_encoder.encoder.layers.0.self_attention.query_key_value": "a language model",
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q": "a T5 text encoder",
    "lora_te3_encoder_block_0_layer_0_SelfAttention_q": "a T5 text encoder",
}


@pytest.mark.parametrize("name", OTHERS)
def test_loras_for_other_models_are_named(name):
    for sides in (PEFT, ("lora_down.weight", "lora_up.weight")):
        with pytest.raises(InputError, match=f"it is a LoRA for {OTHERS[name]}.*, and only those for"):
            read_lora(pair(name, sides=sides))


@pytest.mark.parametrize("read", [read_lora, describe])
def test_files_that_are_no_lora_are_named_in_one_sentence(read, tmp_path):
    path = tmp_path / "a.safetensors"
    for kind in FILES.keys() - {"lora"}:
        save_file({key: torch.ones(2, 2) for key in FILES[kind]}, path)
        with pytest.raises(InputError, match=TITLES[kind]) as refused:
            read(path)
        assert "\n" not in str(refused.value) and str(path) in str(refused.value), kind
    for content, sentence in DISGUISED.values():
        path.write_bytes(content)
        with pytest.raises(InputError, match=sentence) as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_a_misspelled_module_is_not_taken_for_another_models():
    for name in (f"{FLAT}_to_qq", f"unet.{ATTN}.to_qq", f"lora_unet_{ATTN.replace('.', '_')}_atn_to_q"):
        with pytest.raises(InputError, match=r"unknown module of Stable Diffusion .* did you mean.*--skip-unknown"):
            read_lora(pair(name))


def test_files_written_from_any_of_these_are_whole(tmp_path):
    for name, tensors in READ.items():
        lora = read_lora(tensors)
        save_lora(lora, tmp_path / "k.safetensors", "kohya", base="sd15", keep_alphas=True)
        assert read_lora(tmp_path / "k.safetensors").adapters.keys() == lora.adapters.keys(), name
        assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "k.safetensors").values())
