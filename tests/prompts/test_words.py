"""Words of textual inversion files, in every form, against an encoder whose own table holds the vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from sd_ext.errors import InputError
from sd_ext.prompts.encode import encode_prompt, read_prompt
from sd_ext.prompts.words import half_known, learn, read_bundled, use_embedding

TWO = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def by_table(pipe, ids, vectors):
    """The states of a row of tokens, by an encoder whose table got the vectors at its end."""
    encoder = copy.deepcopy(pipe.text_encoder)
    table = encoder.get_input_embeddings()
    table.weight = torch.nn.Parameter(torch.cat([table.weight, vectors.to(table.weight.dtype)]))
    row = [0, *ids, 1]
    return encoder(torch.tensor([row + [1] * (24 - len(row))]))[0]


def ids(pipe, text):
    return pipe.tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture
def file(tmp_path):
    save_file({"emb_params": TWO.half()}, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def test_a_word_stands_for_its_vectors_until_it_is_forgotten(sd, file):
    before = {name: tensor.clone() for name, tensor in sd.text_encoder.state_dict().items()}
    plain = encode_prompt(sd, "a style b")
    size, length = sd.text_encoder.get_input_embeddings().num_embeddings, len(sd.tokenizer)
    with use_embedding(sd, file) as words:
        assert words.words == ["style"]
        made = encode_prompt(sd, "a Style b", "style")
        expected = by_table(sd, [*ids(sd, "a"), size, size + 1, *ids(sd, "b")], TWO.half())
        torch.testing.assert_close(made["prompt_embeds"], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            made["negative_prompt_embeds"], by_table(sd, [size, size + 1], TWO.half()), rtol=1e-5, atol=1e-5
        )
        assert not read_prompt(sd, "a style b").as_it_is
        assert read_prompt(sd, "a stylb").as_it_is
        assert read_prompt(sd, f"{'a' * 21} style").chunks[0][0].tokens == ids(sd, "a" * 21)  # it is not torn
    assert torch.equal(encode_prompt(sd, "a style b")["prompt_embeds"], plain["prompt_embeds"])
    assert len(sd.tokenizer) == length
    after = sd.text_encoder.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    words.undo()


def test_a_weighted_word_weighs_all_its_vectors(sd, file):
    with use_embedding(sd, file, "ab"):
        ((chunk,),) = read_prompt(sd, "x (ab:1.4)").chunks
    assert chunk.weights == [1.0, 1.4, 1.4]


def test_vectors_of_eight_bits_are_read(sd, tmp_path):
    small = TWO.to(torch.float8_e4m3fn)
    save_file({"emb_params": small}, tmp_path / "small.safetensors")
    save_file({"emb_params": small.float()}, tmp_path / "large.safetensors")
    made = []
    for name in ("small", "large"):
        with use_embedding(sd, tmp_path / f"{name}.safetensors", "word"):
            made.append(encode_prompt(sd, "a word")["prompt_embeds"])
    assert torch.equal(*made)
    save_file({"emb_params": torch.full((1, 32), float("nan")).to(torch.float8_e4m3fn)}, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="not finite"):
        use_embedding(sd, tmp_path / "bad.safetensors")


def test_the_forms_of_files(sd, sdxl, tmp_path):
    save_file({"<cat>": torch.ones(32)}, tmp_path / "learned.safetensors")
    with use_embedding(sd, tmp_path / "learned.safetensors") as words:
        assert words.words == ["<cat>"]
        assert len(read_prompt(sd, "a <cat>").chunks[0][0].tokens) == 2
    save_file({"clip_l": torch.ones(3, 16), "clip_g": torch.ones(3, 32)}, tmp_path / "xl.safetensors")
    with use_embedding(sdxl, tmp_path / "xl.safetensors", "cat"):
        assert [len(chunks[0].tokens) for chunks in read_prompt(sdxl, "a cat").chunks] == [4, 4]
        assert half_known(sdxl) == []
        pooled = encode_prompt(sdxl, "cat")["pooled_prompt_embeds"]
    assert not torch.equal(pooled, encode_prompt(sdxl, "cat")["pooled_prompt_embeds"])
    save_file({"dog": torch.ones(2, 32)}, tmp_path / "second.safetensors")  # what the trainer writes for the second
    with use_embedding(sdxl, tmp_path / "second.safetensors"):
        assert half_known(sdxl) == ["text_encoder has no vectors for dog and reads its letters"]
        assert [len(chunks[0].tokens) for chunks in read_prompt(sdxl, "dog").chunks] == [3, 2]
        encode_prompt(sdxl, "dog")
    bundled = {"bundle_emb.cat.string_to_param.*": torch.ones(2, 32), "bundle_emb.dog.clip_l": torch.ones(1, 32)}
    with learn(sd, read_bundled(bundled, "x"), "x") as words:
        assert words.words == ["cat", "dog"]


@pytest.mark.parametrize(
    ("tensors", "word", "message"),
    [
        ({"emb_params": torch.ones(2, 48)}, None, "vectors of width 48; this model has text_encoder 32"),
        ({"clip_g": torch.ones(2, 32)}, None, "width 32 for text_encoder_2"),
        ({"a": torch.ones(32), "b": torch.ones(32)}, "c", "holds 2 words"),
        ({"a": torch.ones(2, 2, 32)}, None, "is no embedding"),
        ({"a": torch.ones(32, dtype=torch.int64)}, None, "is no embedding"),
        ({"a": torch.full((32,), float("nan"))}, None, "not finite"),
        ({"a": torch.ones(32), "b": torch.ones(16)}, None, "width 16"),
        ({"a": torch.ones(32)}, " ", "cannot be read as a word"),
    ],
)
def test_what_cannot_work(sd, tmp_path, tensors, word, message):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=message):
        use_embedding(sd, tmp_path / "bad.safetensors", word)
    assert read_prompt(sd, "a b c").as_it_is  # nothing was learned


def test_other_files_are_refused(sd, file, tmp_path):
    for name, content in (
        ("x.pt", b"pickle"),
        ("x.bin", b""),
        ("x.safetensors", b"none"),
        ("missing.safetensors", None),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            use_embedding(sd, tmp_path / name)
    with use_embedding(sd, file), pytest.raises(InputError, match="the word style is there already"):
        use_embedding(sd, file)
    assert read_prompt(sd, "style").as_it_is
