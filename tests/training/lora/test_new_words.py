"""Textual inversion: only new rows move, they stop when told, and Diffusers says them as they were trained."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sd_ext.errors import InputError
from sd_ext.prompts import use_embedding
from sd_ext.training.lora.new_words import file_names, spell_out

from ..lora_cases import assert_same, outputs, pipeline, untouched, weights

WORDS = {"tokens": ("<toy>", "<hat>"), "token_vectors": 3, "prefix": "<toy> on <hat>", "token_learning_rate": 0.05}
TEXTS = ("a <toy>", "<hat> and <toy>, <toy>", "red bar", "")


def load_words(pipe, folder):
    """As the card of a published LoRA tells strangers to."""
    for suffix, name in (("", "learned_embeds"), ("_2", "learned_embeds_2")):
        if (folder / f"{name}.safetensors").exists():
            encoder, tokenizer = getattr(pipe, f"text_encoder{suffix}"), getattr(pipe, f"tokenizer{suffix}")
            for word, vectors in load_file(folder / f"{name}.safetensors").items():
                pipe.load_textual_inversion({word: vectors}, text_encoder=encoder, tokenizer=tokenizer)


@pytest.mark.parametrize("shape", ["sdxl", pytest.param("sd15", marks=pytest.mark.slow)])
def test_only_the_new_rows_of_the_text_encoders_move(lora_run, shape):
    trained = lora_run(shape, **WORDS)
    outside = {name for name in trained.changed() if not name.startswith("unet.")}
    parts = ["text_encoder", "text_encoder_2"][: 1 + (shape == "sdxl")]
    assert len(outside) == len(parts)
    assert all(name.endswith("token_embedding.vectors") for name in outside)
    base = weights(untouched(trained.base))
    for part in parts:
        kept = {n.replace(".known.", "."): p for n, p in trained.task.towers.encoders[part].named_parameters()}
        vectors = [kept.pop(name) for name in list(kept) if name.endswith(".vectors")]
        assert {f"{part}.{name}" for name in kept} == {name for name in base if name.startswith(f"{part}.")}
        assert all(torch.equal(p, base[f"{part}.{name}"]) for name, p in kept.items())
        mean = base[next(n for n in base if n.startswith(part) and n.endswith("token_embedding.weight"))].mean(0)
        assert vectors[0].shape == (6, len(mean))
        assert ((vectors[0] - mean).abs().max(1).values > 0.01).all()


@pytest.mark.parametrize("shape", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_diffusers_says_the_new_words_as_they_were_trained(lora_run, shape):
    trained = lora_run(shape, **WORDS, text_encoder=shape == "sdxl")
    pipe = pipeline(trained.base)
    pipe.load_lora_weights(trained.folder)
    load_words(pipe, trained.folder)
    spelled = [spell_out(text, WORDS["tokens"], 3) for text in TEXTS]
    assert pipe.maybe_convert_prompt(list(TEXTS), pipe.tokenizer) == spelled
    assert spelled[0] == "a <toy> <toy>_1 <toy>_2"
    got = outputs(pipe, tuple(spelled))
    trained.task.model.eval()
    with torch.no_grad():
        said = trained.task.towers(trained.task.words(TEXTS)["tokens"])
    torch.testing.assert_close(got["states"], said["states"], atol=1e-4, rtol=1e-5)
    task = trained.task
    pipe.unet = task.unet
    pipe.text_encoder, pipe.tokenizer = task.towers.encoders["text_encoder"], task.towers.tokenizers[0]
    if shape == "sdxl":
        pipe.text_encoder_2, pipe.tokenizer_2 = task.towers.encoders["text_encoder_2"], task.towers.tokenizers[1]
    assert_same(got, outputs(pipe, tuple(spelled)))


def test_a_word_of_one_vector_is_said_as_it_is():
    assert spell_out("a <toy>", ["<toy>"], 1) == "a <toy>"


def test_words_stop_after_their_steps_and_the_rest_goes_on(lora_run):
    short = lora_run(**WORDS, token_steps=2, lr_schedule="constant")
    whole = lora_run(**WORDS, lr_schedule="constant")
    until_then = lora_run(**WORDS, lr_schedule="constant", steps=2)
    table = lambda trained: trained.task.new_words[0].vectors  # noqa: E731
    assert torch.equal(table(short), table(until_then))
    assert not torch.equal(table(short), table(whole))
    factors = [{n: p for n, p in t.task.unet.named_parameters() if "lora_B" in n} for t in (short, until_then)]
    assert any(not torch.equal(factors[0][name], factors[1][name]) for name in factors[0])


def test_words_start_from_a_known_one(lora_run):
    still = {"steps": 1, "learning_rate": 1e-9, "token_learning_rate": 1e-9}
    trained = lora_run(tokens=("<toy>",), token_init="q", prefix="<toy>", **still)
    tokenizer, known = trained.task.towers.tokenizers[0], trained.task.new_words[0].known.weight
    torch.testing.assert_close(trained.task.new_words[0].vectors[0], known[tokenizer.convert_tokens_to_ids("q</w>")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": ("<toy>",)}, "<toy> stands in no caption"),
        ({"tokens": ("a</w>",), "prefix": "a</w>"}, "knows 'a</w>' already"),
        ({"tokens": ("<toy>",), "prefix": "<toy>", "token_init": "two words"}, "give a word that is a single one"),
    ],
)
def test_words_that_cannot_be_learnt(lora_run, settings, message):
    with pytest.raises(InputError, match=message):
        lora_run(**settings)


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_other_programs_get_one_file_for_all_encoders(lora_run, shape):
    trained = lora_run(shape, **WORDS)
    pipe = pipeline(trained.base)
    for token, name in file_names(trained.config.words.tokens).items():
        file = trained.folder / "embeddings" / f"{name}.safetensors"
        found = load_file(file)
        assert list(found) == (["clip_g", "clip_l"] if shape == "sdxl" else ["emb_params"])
        ours = [load_file(path)[token] for path in sorted(trained.folder.glob("learned_embeds*.safetensors"))]
        theirs = [found[key] for key in (("clip_l", "clip_g") if shape == "sdxl" else ("emb_params",))]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert use_embedding(pipe, file).words == [name]


def test_files_of_words_have_names_of_their_own():
    assert file_names(["<cat-toy>", "cat-toy", "<Cat-Toy>", "<>", "a/b", ".."]) == {
        "<cat-toy>": "cat-toy", "cat-toy": "cat-toy-2", "<Cat-Toy>": "Cat-Toy-3", "<>": "word", "a/b": "ab",
        "..": "word-2",
    }  # fmt: skip
