"""Captions read in chunks: what `encode_prompt` makes of the same prompt, for each family, told and cached."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from sd_ext.prompts import encode_prompt
from sd_ext.training.model.chunked import Length, NewWords, chunks_of, lengths, told
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.trainable import find_trainable

from ..lora_cases import a_task, train, untouched

CHUNK = 22  # tokens of a text that the tiny encoders read at once
LONG = "a red circle, " * 7 + "a blue bar"  # commas near the end of a chunk
TEXTS = ("red", LONG, "word " * 60, "")


@pytest.mark.parametrize(("shape", "skip"), [("sd15", 1), ("sd21", 1), ("sdxl", 1)])
@torch.no_grad()
def test_chunks_are_those_of_prompts(bases, shape, skip):
    pipe = untouched(bases[shape])
    towers = TextTowers.load(find_trainable(str(bases[shape])), clip_skip=skip, chunks=3)
    tokens = towers.tokenize(TEXTS[:2])
    assert tokens.shape == (2, len(towers.encoders), 3 * (CHUNK + 2))
    made = towers(tokens)
    filler = "word " * (3 * CHUNK)  # so that the prompts get as many chunks
    [theirs] = [encode_prompt(pipe, [*TEXTS[:2], filler], clip_skip=skip)]
    length = made["states"].shape[1]
    assert theirs["prompt_embeds"].shape[1] >= length
    torch.testing.assert_close(made["states"], theirs["prompt_embeds"][:2, :length])
    if shape == "sdxl":
        torch.testing.assert_close(made["pooled"], theirs["pooled_prompt_embeds"][:2])


@torch.no_grad()
def test_one_chunk_is_read_as_ever_and_clip_skip_reaches_every_chunk(tiny_pipeline_dir, tiny_pipeline):
    files = find_trainable(str(tiny_pipeline_dir))
    one, two = (TextTowers.load(files, clip_skip=2, chunks=chunks) for chunks in (1, 2))
    first, both = one(one.tokenize(["red"]))["states"], two(two.tokenize(["red"]))["states"]
    torch.testing.assert_close(both[:, : first.shape[1]], first)
    torch.testing.assert_close(both[:, first.shape[1] :], one(one.tokenize([""]))["states"])
    theirs = encode_prompt(tiny_pipeline, LONG, clip_skip=2)["prompt_embeds"]
    torch.testing.assert_close(two(two.tokenize([LONG]))["states"], theirs[:, : both.shape[1]])


def test_what_is_long_is_told(bases):
    tokenizer = untouched(bases["sd15"]).tokenizer
    count = len(tokenizer("word", add_special_tokens=False).input_ids)
    found = lengths(tokenizer, TEXTS, 2)
    assert [each.kept == each.tokens for each in found] == [True, False, False, True]
    assert found[2] == Length(60 * count, -(-60 * count // CHUNK), 2 * CHUNK)
    read, lost = told(TEXTS, found, 2, CHUNK)
    assert read == "read in 2 chunks of 22 tokens; 2 of 4 have more than one"
    assert lost.startswith("2 of 4 are cut off after 2 chunks, e.g. 'a red circle")
    needed = max(each.chunks for each in found)
    assert lost.endswith(f"caption_chunks = {needed} reads all")
    assert told(TEXTS, lengths(tokenizer, TEXTS, needed), needed, CHUNK)[1] == ""
    assert told(TEXTS[:1], found[:1], 1, CHUNK) == ("", "")
    assert [each.kept for each in lengths(tokenizer, TEXTS, 1)][1:3] == [CHUNK, CHUNK]


def test_vectors_of_a_new_word_stay_in_one_chunk(bases):
    tokenizer = untouched(bases["sd15"]).tokenizer
    plain, new = [1] * (CHUNK - 1), [1000, 1001, 1002, 1003]
    assert chunks_of(tokenizer, plain + new) == [[*plain, 1000], new[1:]]
    assert chunks_of(tokenizer, plain + new, NewWords(1000, 2)) == [plain, new]
    assert chunks_of(tokenizer, new * 2, NewWords(1000, 4)) == [new * 2]


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"text_encoder": True}])
def test_a_run_reads_them_from_the_cache_or_with_its_encoders(bases, picture_folder, tmp_path, capfd, more):
    settings = {"instance_prompt": "unused", "prefix": LONG, "caption_chunks": 2, **more}
    run = train(bases["sd15"], tmp_path / "run", data=str(picture_folder), **settings)
    printed = capfd.readouterr()
    assert "captions: read in 2 chunks of 22 tokens; 11 of 11 have more than one" in printed.out
    [text] = run.task.texts[:1]
    states = run.task.words([text]).get("states")
    if states is not None:
        towers = TextTowers.load(run.task.files, chunks=2)
        with torch.no_grad():
            expected = towers(towers.tokenize([text]))["states"]
        torch.testing.assert_close(states, expected, atol=2e-3, rtol=1e-3)  # float16 in the cache
    else:
        assert run.task.words([text])["tokens"].shape[-1] == 2 * (CHUNK + 2)
    cut = a_task(tmp_path, bases["sd15"], picture_folder, prefix="word " * 60, caption_chunks=2)
    cut.begin(Accelerator(cpu=True))
