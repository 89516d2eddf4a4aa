"""What is in a LoRA's file stays: words, tags, titles, precision, norms; and what cannot stay is named."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sd_ext.errors import InputError
from sd_ext.lora import (
    Adapter,
    Lora,
    ModuleName,
    apply_lora,
    extract,
    merge,
    merge_into,
    read_lora,
    resize,
    save_lora,
)
from sd_ext.lora.weights import ModelWeights
from sd_ext.prompts.words import read_embedding

from . import models

ATTN = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
MODULE = ModuleName("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
FLAT = f"lora_unet_{ATTN}"
WORD = "bundle_emb.ohwx.string_to_param.*"


def tensors(seed=0, dtype=torch.float32, **more):
    draw = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, 8, generator=draw), torch.randn(8, 2, generator=draw)
    made = {f"{FLAT}.lora_down.weight": down, f"{FLAT}.lora_up.weight": up, **more}
    return {key: tensor.to(dtype) for key, tensor in made.items()}


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


# ---- words


def test_words_are_written_beside_where_the_format_has_no_place(tmp_path):
    vectors = torch.randn(3, 768)
    lora = read_lora(tensors(**{WORD: vectors, "bundle_emb.xl.clip_l": vectors, "bundle_emb.xl.clip_g": vectors}))
    note = save_lora(lora, tmp_path / "a.safetensors", "diffusers")
    assert not any("bundle" in key for key in load_file(tmp_path / "a.safetensors"))
    assert "ohwx" in note and "a_words" in note
    (word,) = read_embedding(tmp_path / "a_words" / "ohwx.safetensors")
    assert word.word == "ohwx" and torch.equal(word.vectors, vectors)
    assert {each.part for each in read_embedding(tmp_path / "a_words" / "xl.safetensors")} == {
        "text_encoder", "text_encoder_2"
    }  # fmt: skip
    other = read_lora(tensors(**{WORD: 2 * vectors}))
    for again, name in ((lora, "ohwx."), (other, "ohwx-2."), (other, "ohwx-2."), (lora, "ohwx.")):  # none is replaced
        assert name in save_lora(again, tmp_path / "a.safetensors", "diffusers")
    (second,) = read_embedding(tmp_path / "a_words" / "ohwx-2.safetensors")
    assert second.word == "ohwx-2" and torch.equal(second.vectors, 2 * vectors)
    assert save_lora(lora, tmp_path / "k.safetensors", "kohya") == ""
    assert torch.equal(load_file(tmp_path / "k.safetensors")[WORD], vectors)


def test_a_merge_keeps_the_words_of_all(caplog):
    one, other = torch.randn(2, 768), torch.randn(2, 768)
    same = [read_lora(tensors(seed, **{WORD: one})) for seed in (0, 1)]
    assert merge([(lora, 1.0) for lora in same]).bundled.keys() == {WORD}
    assert not caplog.text
    both = merge([(same[0], 1.0), (read_lora(tensors(1, **{WORD: other})), 1.0)])
    second = "bundle_emb.ohwx-2.string_to_param.*"
    assert both.bundled.keys() == {WORD, second}
    assert torch.equal(both.bundled[second], other)
    assert "two of the LoRAs bring the word ohwx; the second is called ohwx-2" in caplog.text


def test_words_stay_beside_a_model_that_takes_a_lora_in(tmp_path, caplog):
    lora = read_lora(tensors(**{WORD: torch.randn(3, 768)}))
    base = copy.deepcopy(models.tiny_models("sd15"))
    for part, model in base.items():
        model.save_pretrained(tmp_path / "base" / part)
    merge_into(tmp_path / "base", [(lora, 1.0)], tmp_path / "v1.5")
    (word,) = read_embedding(tmp_path / "v1.5_words" / "ohwx.safetensors")
    assert torch.equal(word.vectors, lora.bundled[WORD])
    assert f"a model has no place for the words bundled with it; written beside it: ohwx in {tmp_path}" in caplog.text
    merge_into(base, [(lora, 1.0)])
    assert "left out the bundled words, which are no weights: ohwx" in caplog.text


# ---- headers


def test_titles_and_tags_survive_a_merge_and_what_does_not_is_named(caplog, tmp_path):
    one = {"modelspec.title": "Ink", "ss_tag_frequency": json.dumps({"a": {"cat": 2, "ink": 1}}), "ss_seed": "1",
           "ss_base_model_version": "sd_v1", "modelspec.author": "Ann"}  # fmt: skip
    other = {"modelspec.title": "Wash", "ss_tag_frequency": json.dumps({"a": {"cat": 1}, "b": {"dog": 4}}),
             "ss_seed": "2", "ss_base_model_version": "sd_v1", "modelspec.author": "Ben"}  # fmt: skip
    merged = merge([(read_lora(tensors(0), one), 0.5), (read_lora(tensors(1), other), 1.0)])
    save_lora(merged, tmp_path / "m.safetensors", "kohya")
    made = header(tmp_path / "m.safetensors")
    assert made["modelspec.title"] == "Ink + Wash"
    assert made["modelspec.author"] == "Ann, Ben"
    assert json.loads(made["ss_tag_frequency"]) == {"a": {"cat": 3, "ink": 1}, "b": {"dog": 4}}
    assert json.loads(made["sd_ext.merged"]) == [{"title": "Ink", "strength": 0.5}, {"title": "Wash", "strength": 1.0}]
    assert "ss_seed" in caplog.text and "ss_seed" not in made
    assert merge([(read_lora(tensors(0), one), 2.0)]).metadata == one


# ---- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_files_stay_in_their_precision_unless_asked(dtype, tmp_path):
    lora = read_lora(tensors(dtype=dtype))
    for made in (merge([(lora, 0.5), (lora, 0.5)]), resize(lora, rank=1), resize(lora, energy=1.0), lora):
        for format in ("kohya", "diffusers"):
            save_lora(made, tmp_path / "a.safetensors", format)
            found = load_file(tmp_path / "a.safetensors")
            assert {t.dtype for key, t in found.items() if not key.endswith("alpha")} == {dtype}
    save_lora(merge([(lora, 0.5)]), tmp_path / "a.safetensors", "kohya", dtype=torch.float32)
    assert load_file(tmp_path / "a.safetensors")[f"{FLAT}.lora_up.weight"].dtype == torch.float32
    mixed = merge([(lora, 1.0), (read_lora(tensors(1, torch.float32)), 1.0)])
    save_lora(mixed, tmp_path / "a.safetensors", "kohya")
    assert load_file(tmp_path / "a.safetensors")[f"{FLAT}.lora_up.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_eight_bits_are_read_with_the_same_values(dtype, tmp_path, caplog):
    small = tensors(dtype=dtype)
    save_file(small, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    wanted = small[f"{FLAT}.lora_up.weight"].float() @ small[f"{FLAT}.lora_down.weight"].float()
    torch.testing.assert_close(lora.delta(MODULE), wanted)
    assert "read as float16 with the same values" in caplog.text


# ---- peft's settings


def test_a_named_file_gets_the_settings_beside_it(tmp_path):
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["to_q"], init_lora_weights=False)
    get_peft_model(models.tiny_unet("sd15"), config).save_pretrained(tmp_path / "unet")
    (tmp_path / "unet" / "adapter_model.safetensors").rename(tmp_path / "unet" / "mine.safetensors")
    assert {adapter.scale for adapter in read_lora(tmp_path / "unet" / "mine.safetensors")} == {4.0}
    (tmp_path / "unet" / "mine.safetensors").rename(tmp_path / "unet" / "adapter_model.safetensors")
    assert {adapter.scale for adapter in read_lora(tmp_path / "unet" / "adapter_model.safetensors")} == {4.0}


# ---- norms, biases, and other shapes


@pytest.fixture(scope="module")
def tuned():
    """A tiny model, and one in which every parameter differs by a twentieth of its size."""
    base = models.tiny_models("sd15")
    changed = copy.deepcopy(base)
    draw = torch.Generator().manual_seed(0)
    for model in changed.values():
        for parameter in model.parameters():
            parameter.data += 0.05 * (parameter.data.abs().mean() + 0.02) * torch.randn(parameter.shape, generator=draw)
    return base, changed


def test_extract_tells_what_a_lora_cannot_hold_and_keeps_it_when_asked(tuned, caplog, tmp_path):
    base, changed = tuned
    before, after = ModelWeights(base), ModelWeights(changed)
    bare = extract(base, changed, energy=1.0)
    rest = {m for m in before.shapes() if m not in bare.adapters and (before.weight(m) != after.weight(m)).any()}
    assert bare.plain and len(rest) > 100
    assert f"{len(rest)} norms, biases and tables that differ" in caplog.text and "--full-rest" in caplog.text
    squares = {m: float((before.weight(m) - after.weight(m)).double().square().sum()) for m in before.shapes()}
    share = sum(squares[m] for m in rest) / sum(squares.values())
    assert f"{share:.2g} of the change" in caplog.text
    caplog.clear()
    whole = extract(base, changed, energy=1.0, full_rest=True)
    assert not caplog.text
    made = copy.deepcopy(base)
    save_lora(whole, tmp_path / "a.safetensors", "kohya", base="sd15")
    apply_lora(made, read_lora(tmp_path / "a.safetensors"))
    got, expected = models.outputs(made), models.outputs(changed)
    for part, output in expected.items():
        torch.testing.assert_close(got[part], output, rtol=1e-3, atol=1e-3)
    keys = load_file(tmp_path / "a.safetensors").keys()
    assert {"diff_b", "w_norm", "b_norm"} <= {key.rpartition(".")[2] for key in keys}
    with pytest.raises(InputError, match=r"is a diff, which Diffusers' loader cannot read.*--plain"):
        save_lora(whole, tmp_path / "b.safetensors", "diffusers")
    plain = resize(whole, rank=2, plain=True)
    assert plain.plain and plain.adapters.keys() == bare.adapters.keys()
    assert f"left out {len(rest)} norms and biases" in caplog.text
    kept = merge([(whole, 0.5), (whole, 0.5)])
    for module in whole.adapters:
        torch.testing.assert_close(kept.delta(module), whole.delta(module), rtol=1e-4, atol=1e-5)


def test_an_inpainting_model_is_compared_where_shapes_agree(tuned, caplog):
    base, changed = tuned
    wide = {"unet": copy.deepcopy(changed["unet"])}
    wide["unet"].conv_in = nn.Conv2d(9, 8, 3, padding=1)
    found = extract(base, wide, rank=1)
    assert ModuleName("unet", "conv_in") not in found.adapters
    assert (
        "left out 1 modules of other shapes in the two models: unet.conv_in ((8, 4, 3, 3) and (8, 9, 3, 3))"
        in caplog.text
    )


def test_a_linear_layer_and_a_pointwise_convolution_are_brought_to_the_base(caplog, tmp_path):
    path = "down_blocks_0_attentions_0_proj_in"
    four = {f"lora_unet_{path}.lora_down.weight": torch.randn(2, 8, 1, 1),
            f"lora_unet_{path}.lora_up.weight": torch.randn(8, 2, 1, 1)}  # fmt: skip
    lora = read_lora(four, {"ss_v2": "True"})
    assert "1 of its modules are 1 x 1 convolutions, and in Stable Diffusion 2.x linear layers" in caplog.text
    (adapter,) = lora
    assert adapter.down.shape == (2, 8) and adapter.up.shape == (8, 2)
    save_lora(lora, tmp_path / "d.safetensors", "diffusers")
    made = copy.deepcopy(models.tiny_models("sd21"))
    models.pipeline("sd21", made).load_lora_weights(str(tmp_path / "d.safetensors"))
    flat = read_lora({key: tensor.flatten(1) for key, tensor in four.items()}, {"ss_v2": "True"})
    module = ModuleName(
        "unet", path.replace("_", ".").replace("down.blocks", "down_blocks").replace("proj.in", "proj_in")
    )
    convolutional = Lora({module: Adapter("lora", {"down": torch.ones(1, 8, 1, 1), "up": torch.ones(8, 1, 1, 1)}, 1.0)})
    both = merge([(flat, 1.0), (convolutional, 1.0)])
    assert both.adapters[module].down.ndim == 2
    based = merge([(flat, 1.0), (convolutional, 1.0)], base=models.tiny_models("sd15"))
    assert based.adapters[module].down.ndim == 4


# ---- what does not go together


def test_what_does_not_go_together_is_refused_and_nothing_changes(tmp_path):
    lora, base = read_lora(tensors()), models.tiny_models("sd15")
    large = read_lora({f"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.{side}.weight": torch.ones(2, 2)
                       for side in ("lora_up", "lora_down")})  # fmt: skip
    assert large.base == "sdxl"
    for wrong in ("0.5", None, float("nan"), float("inf"), True):
        for attempt in (lambda w: merge([(lora, w)]), lambda w: apply_lora(base, lora, w)):
            with pytest.raises(InputError, match="give a finite number"):
                attempt(wrong)
    with pytest.raises(InputError, match=r"different bases: sd15, sdxl \(Stable Diffusion 1\.x, Stable Diffusion XL\)"):
        merge([(lora, 1.0), (large, 1.0)])
    with pytest.raises(InputError, match=r"the LoRA is for Stable Diffusion XL|unknown module of the base"):
        merge_into(base, [(large, 1.0)])
    with pytest.raises(InputError, match=r"is for Stable Diffusion 1\.x, and the base is Stable Diffusion XL"):
        resize(lora, rank=1, base=models.tiny_models("sdxl"))
    before = tmp_path / "a.safetensors"
    save_lora(lora, before, "kohya")
    content = before.read_bytes()
    with pytest.raises(InputError, match="no module"):
        save_lora(lora, before, "kohya", base="sdxl")
    assert before.read_bytes() == content
