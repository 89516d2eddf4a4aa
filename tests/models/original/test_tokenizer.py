"""CLIP's tokenizer, offline: the numbers that everyone's has."""

from __future__ import annotations

import json

from sd_ext.models.original.tokenizer import END, make_tokenizer, tokenizer_config, tokenizer_files, vocabulary


def test_the_vocabulary_is_clips():
    vocab, merges = vocabulary()
    assert (len(vocab), len(merges)) == (49408, 48894)
    assert sorted(vocab.values()) == list(range(49408))
    known = {"!": 0, '"': 1, "a</w>": 320, "cat</w>": 2368, "photo</w>": 1125, "<|startoftext|>": 49406, END: 49407}
    assert {entry: vocab[entry] for entry in known} == known
    assert merges[0] == "i n"


def test_texts_get_the_numbers_that_everyone_knows(tmp_path):
    """Known numbers, and the same from the files that a folder gets."""
    from transformers import CLIPTokenizer

    made = make_tokenizer("clip")
    assert made("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert made("A  Photo OF a cat").input_ids == made("a photo of a cat").input_ids
    for style, padding in (("clip", 49407), ("open_clip", 0)):
        for name, content in tokenizer_files(style).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text, "utf-8")
        read = CLIPTokenizer.from_pretrained(tmp_path)
        ours = made if style == "clip" else make_tokenizer(style)
        for text in ("a photo of a cat", "naïve café, 3 üñí!", "🐱 don't"):
            ids = ours(text, padding="max_length", truncation=True).input_ids
            assert ids == read(text, padding="max_length", truncation=True).input_ids
            assert (len(ids), ids[-1]) == (77, padding)


def test_the_config_names_what_the_files_hold():
    assert tokenizer_config("open_clip")["pad_token"] == "!"
    assert tokenizer_config("clip")["model_max_length"] == 77
