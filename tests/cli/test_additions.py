"""--lora, --embedding and --vae: as they are written, and what they do to pictures."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_ext.cli.additions import parse_embedding, parse_lora, parse_loras
from sd_ext.cli.pictures import read_record
from sd_ext.errors import InputError
from sd_ext.lora import Strength, merge_into, save_lora
from sd_ext.models import find_part
from tests.lora import tiny
from tests.models import original_layout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1, 1)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8, 0.8)),
        ("a.safetensors:0.8:0", ("a.safetensors", 0.8, 0)),
        ("aa:-.5:+1e-1", ("aa", -0.5, 0.1)),
        (r"C:\x.safetensors:0.8", (r"C:\x.safetensors", 0.8, 0.8)),
        (r"C:\x.safetensors:0.8:0.5", (r"C:\x.safetensors", 0.8, 0.5)),
        (r"C:\x.safetensors", (r"C:\x.safetensors", 1, 1)),
        ("C:/x:1", ("C:/x", 1, 1)),
        ("c:5", ("c:5", 1, 1)),
        ("owner/name:0.8", ("owner/name", 0.8, 0.8)),
        ("owner/name/file.safetensors:2", ("owner/name/file.safetensors", 2, 2)),
        ("a:1:2:3", ("a:1", 2, 3)),
        ("a:strong", ("a:strong", 1, 1)),
    ],
)
def test_a_lora_and_its_strengths(text, expected):
    name, unet, in_text = expected
    found, strength = parse_lora(text)
    assert (found, strength.of_part("unet"), strength.of_part("text_encoder")) == (name, unet, in_text)


def test_block_weights_of_several():
    named = parse_loras(["aa", "bb:0.5"], ["OUTD"], "--blocks")
    assert [each.strength for each in named] == [Strength(1.0, blocks="OUTD"), Strength(0.5, blocks="OUTD")]
    assert [each.strength.blocks for each in parse_loras(["a", "b"], ["INS", "ALL"], "--blocks")] == ["INS", "ALL"]
    with pytest.raises(InputError, match="--blocks is given 2 times for 3 LoRAs"):
        parse_loras(["a", "b", "c"], ["ALL", "ALL"], "--blocks")
    with pytest.raises(InputError, match="--lora-blocks needs a LoRA"):
        parse_loras([], ["ALL"], "--lora-blocks")


@pytest.mark.parametrize("text", ["", " ", ":0.8", "a:", "aa:0.8:"])
def test_what_names_no_lora(text):
    with pytest.raises(InputError, match=r"names no LoRA; write FILE:STRENGTH"):
        parse_lora(text)


@pytest.mark.parametrize("text", ["aa:nan", "aa:-inf", "aa:1e999", "aa:101", "aa:1:-101"])
def test_strengths_that_cannot_work(text):
    with pytest.raises(InputError, match="cannot work; choose -100 to 100"):
        parse_lora(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", None)),
        ("a.safetensors:<cat>", ("a.safetensors", "<cat>")),
        (r"C:\a.safetensors", (r"C:\a.safetensors", None)),
        (r"C:\a.safetensors:cat", (r"C:\a.safetensors", "cat")),
        ("C:/a:cat", ("C:/a", "cat")),
        ("d:a", ("d:a", None)),
    ],
)
def test_an_embedding_and_its_word(text, expected):
    assert parse_embedding(text) == expected


def test_a_file_whose_name_has_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:0.5").touch()
    assert parse_lora("a:0.5") == ("a:0.5", Strength(1.0))
    assert parse_lora("a:0.5:0.8") == ("a:0.5", Strength(0.8))
    assert parse_embedding("a:0.5") == ("a:0.5", None)


@pytest.fixture
def draw(run, tiny_pipeline_dir):
    return lambda *arguments: run("generate", "--model", tiny_pipeline_dir, "--steps", 2, *arguments)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize(
    ("kind", "blocks"), [("lora", ("--lora-blocks", "outall")), pytest.param("loha", (), marks=pytest.mark.slow)]
)
def test_pictures_with_loras_are_those_of_the_merged_model(draw, run, tiny_pipeline_dir, tmp_path, kind, blocks):
    lora = tiny.trained(kind)[1]
    save_lora(lora, tmp_path / "style.safetensors", "kohya")
    command = "convert", "merge", "style.safetensors:0.7:0.4", "--into", tiny_pipeline_dir, "--out", "merged"
    assert run(*command, *(option.replace("--lora-", "--") for option in blocks)).code == 0
    strength = Strength(0.7, 0.4, *blocks[1:])
    merge_into(tiny_pipeline_dir, [(lora, strength)], tmp_path / "by_hand")
    for file in (tmp_path / "by_hand" / "unet").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "merged" / "unet" / file.name).read_bytes()
    done = draw("red apple", "--lora", "style.safetensors:0.7:0.4", "--unet", "fast", *blocks)
    merged = run("generate", "red apple", "--model", "merged", "--steps", 2, "--unet", "fast")
    assert (pixels(done.paths[0]) == pixels(merged.paths[0])).all()
    assert (pixels(done.paths[0]) != pixels(draw("red apple", "--unet", "fast").paths[0])).any()
    recipe = read_record(done.paths[0]).recipe
    assert (recipe.lora, recipe.lora_blocks) == (("style.safetensors:0.7:0.4",), blocks[1:])
    again = run("generate", "--again", done.paths[0]).paths[0]
    assert again.read_bytes() == done.paths[0].read_bytes()


def test_a_learned_word_shows_where_it_is_written(draw, run, tmp_path):
    save_file({"emb_params": torch.randn(2, 32)}, tmp_path / "dog.safetensors")
    options = "--embedding", "dog.safetensors", "--guidance", 7
    assert (pixels(draw("dog", *options).paths[0]) != pixels(draw("dog", "--guidance", 7).paths[0])).any()
    assert (pixels(draw("cat", *options).paths[0]) == pixels(draw("cat", "--guidance", 7).paths[0])).all()
    named = draw("a x1", "--embedding", "dog.safetensors:x1", "--plain-prompt", "--guidance", 7).paths[0]
    assert (pixels(named) != pixels(draw("a x1", "--plain-prompt", "--guidance", 7).paths[0])).any()
    assert run("generate", "--again", named).paths[0].read_bytes() == named.read_bytes()


def test_another_autoencoder_decodes(draw, run, tiny_pipeline_dir, tmp_path):
    shutil.copytree(tiny_pipeline_dir / "vae", tmp_path / "vae")
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"] = tensors["decoder.conv_out.bias"] + 0.5
    save_file(tensors, weights)
    plain = pixels(draw("red apple").paths[0])
    folder, file = (draw("red apple", "--vae", vae).paths[0] for vae in (tmp_path / "vae", weights))
    assert pixels(folder).mean() > plain.mean() + 20
    assert (pixels(folder) == pixels(file)).all()
    assert run("generate", "--again", file).paths[0].read_bytes() == file.read_bytes()
    same = draw("red apple", "--vae", tiny_pipeline_dir).paths[0]
    assert (pixels(same) == plain).all()


def test_an_autoencoder_in_the_original_layout(draw, tmp_path):
    file = tmp_path / "original.safetensors"
    start = "first_stage_model."
    save_file({name: each for name, each in original_layout.tensors("sd15").items() if name.startswith(start)}, file)
    find_part(str(file), "vae").load("vae").save_pretrained(tmp_path / "folder")
    by_file, by_folder = (draw("red apple", "--vae", vae).paths[0] for vae in (file, "folder"))
    assert (pixels(by_file) == pixels(by_folder)).all()
    assert pixels(by_file).std() > 0


BAD = {
    "no lora": (["--lora", "none.safetensors:0.8"], "no such LoRA: none.safetensors"),
    "strength in words": (["--lora", "lora.safetensors:strong"], "no such LoRA: lora.safetensors:strong"),
    "no strength": (["--lora", "lora.safetensors:"], "write FILE:STRENGTH"),
    "pickled lora": (["--lora", "x.pt"], "is a pickle"),
    "pickled embedding": (["--embedding", "x.pt:cat"], "is a pickle"),
    "no embedding": (["--embedding", "none.safetensors"], "no such embedding: none.safetensors"),
    "a folder of embeddings": (["--embedding", "."], "is a folder"),
    "no word": (["--embedding", "none.safetensors:"], "write FILE:WORD"),
    "no vae": (["--vae", "none.safetensors"], "no such autoencoder"),
    "pickled vae": (["--vae", "x.pt"], "is a pickle"),
}
LATE = {
    "no lora inside": (["--lora", "wide.safetensors"], "no LoRA in it; it is an embedding"),
    "embedding of another width": (["--embedding", "wide.safetensors"], "width 48"),
    "folder without a vae": (["--vae", "."], "holds no vae"),
    "file without a vae": (["--vae", "wide.safetensors"], "wide.safetensors"),
}


@pytest.mark.parametrize(("options", "message"), [*BAD.values(), *LATE.values()], ids=[*BAD, *LATE])
def test_bad_files_are_one_sentence(draw, tmp_path, monkeypatch, options, message):
    def too_late(*arguments):
        raise AssertionError("the model was loaded before its arguments were checked")

    (tmp_path / "x.pt").write_bytes(b"")
    save_file({"emb_params": torch.ones(2, 48)}, tmp_path / "wide.safetensors")
    if (options, message) in BAD.values():
        monkeypatch.setattr("sd_ext.cli.prepare.load_pipeline", too_late)
    refused = draw("x", *options)
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err
    assert refused.err.startswith("sd-ext: ")
    assert refused.err.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))
