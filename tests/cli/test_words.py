"""`sd-ext words`, and what `sd-ext generate` says of a model that tells what it answers to."""

from __future__ import annotations

import json
import re
import shutil

import pytest

import sd_ext
from sd_ext.cli.advice import doubts, far_guidance, far_size, unknown_words
from sd_ext.cli.pictures import read_record
from sd_ext.models.words import FILE, Words, read_words

KNOWN = {
    "guidance": 2.5,
    "things": {
        "animals": [
            {"names": ["cat", "kitty"], "plurals": ["cats", "kitties"], "tags": ["feline"]},
            {"names": ["polar bear"], "plurals": ["polar bears"]},
        ],
        "places": [{"names": ["house"], "plurals": ["houses"]}, {"names": ["tower"], "plurals": ["towers"]}],
    },
    "styles": {"flat": ["flat", "flat design"]},
    "colours": {"orange": ["orange"], "grey": ["grey", "gray"]},
    "numbers": {"2": ["two", "2"]},
    "positions": ["next to"],
    "grounds": {"coloured": ["on a {colour} background"], "night": ["at night"]},
    "forms": ["a photo of"],
}


@pytest.fixture
def model(tiny_pipeline_dir, tmp_path_factory):
    """A tiny pipeline that tells what it knows."""
    folder = tmp_path_factory.mktemp("knowing") / "pipeline"
    shutil.copytree(tiny_pipeline_dir, folder)
    (folder / FILE).write_text(json.dumps(KNOWN))
    return folder


@pytest.fixture
def draw(run, model):
    return lambda *arguments: run("generate", "--model", model, "--steps", 1, *arguments)


# ---- generate --------------------------------------------------------------------------------------------------------


def test_unknown_words_are_named_once_with_their_near_ones(draw, model):
    done = draw("a lighthouse, masterpiece", "the Lighthouse at night", "--negative", "felines")
    assert done.code == 0
    assert done.err.count("I know no 'lighthouse'; near: house.") == 1
    assert "I know no 'felines'; near: cat." in done.err
    assert f"I know no 'masterpiece'; `sd-ext words --model {model}` lists what I know." in done.err


def test_known_words_are_not_spoken_of(draw):
    done = draw("Two orange CATS next to a house, on a grey background, flat design", "a cat, feline")
    assert "I know no" not in done.err
    assert "far from" not in done.err


def test_brackets_and_weights_are_no_words(draw):
    assert "I know no" not in draw("a (orange:1.3) cat, [flat] (house) BREAK at night").err
    assert "I know no '1'; near: two." in draw("(cat:1.2)", "--plain-prompt").err


def test_words_learned_from_files_are_known(model, tmp_path):
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import save_file
    from torch import zeros

    from sd_ext.cli.request import Recipe
    from sd_ext.prompts import use_embedding
    from sd_ext.prompts.encoders import find_encoders

    pipe = StableDiffusionPipeline.from_pretrained(model)
    recipe = Recipe(prompt="a qqq-toy next to a cat", model=str(model), size="64x64", guidance=2.5)
    assert len(doubts(read_words(model), pipe, [recipe])) == 1
    save_file({"qqq-toy": zeros(1, find_encoders(pipe)[0].width)}, tmp_path / "learned.safetensors")
    with use_embedding(pipe, tmp_path / "learned.safetensors"):
        assert doubts(read_words(model), pipe, [recipe]) == []


def test_the_usual_guidance_is_the_default_and_others_far_from_it_are_said(draw):
    plain = draw("cat")
    assert read_record(plain.paths[0]).recipe.guidance == 2.5
    assert "Guidance 7 is far from this model's usual 2.5" in draw("cat", "--guidance", 7).err
    near = draw("cat", "--guidance", 3)
    assert "far from" not in near.err
    assert read_record(near.paths[0]).recipe.guidance == 3


def test_sizes_far_from_the_trained_one_are_said(draw):
    assert "128x64 is far from the 64x64" in draw("cat", "--size", "128x64").err
    assert "far from" not in draw("cat", "--size", "72x64").err


def test_a_model_that_tells_nothing_is_told_nothing(run, tiny_pipeline_dir):
    done = run("generate", "x", "--model", tiny_pipeline_dir, "--steps", 1, "--size", "128x64", "--guidance", 50)
    assert done.code == 0
    assert "far from" not in done.err
    assert "I know" not in done.err


def test_a_damaged_list_is_refused_before_the_model_is_loaded(draw, model, monkeypatch):
    monkeypatch.setattr("sd_ext.cli.prepare.load_pipeline", None)
    (model / FILE).write_text('{"guidance": "strong"}')
    refused = draw("cat")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "guidance must be a number or none" in refused.err


def test_a_strangers_names_cannot_steer_the_terminal(draw, model):
    words = {"things": {"x": [{"names": ["cat\x1b[2J"], "plurals": [], "tags": ["pet"]}]}}
    (model / FILE).write_text(json.dumps(words))
    done = draw("pet")
    assert "near: cat\\x1b[2J" in done.err
    assert "\x1b[2J" not in done.err


def test_many_unknown_words_take_a_line():
    known = Words(things=read_things())
    said = unknown_words(known, [" ".join(f"qq{chr(97 + n)}zz" for n in range(20))], "sd-ext words")
    assert len(said) == 1
    assert said[0].endswith("'qqfzz', and 14 words more; `sd-ext words` lists what I know.")
    said = unknown_words(known, [" ".join(f"cat{chr(97 + n)}" for n in range(20))], "sd-ext words")
    assert len(said) == 7
    assert unknown_words(Words(), ["anything"], "sd-ext words") == []


def read_things():
    from sd_ext.models.words import Thing

    return {"animals": [Thing(("cat",), ("cats",))]}


@pytest.mark.parametrize(("guidance", "far"), [(1.5, False), (3, False), (6, False), (6.1, True), (1.4, True)])
def test_how_far_is_far_for_guidance(guidance, far):
    assert bool(far_guidance(Words(guidance=3), guidance)) == far
    assert not far_guidance(Words(), guidance)


@pytest.mark.parametrize(
    ("size", "unet", "far"),
    [
        ((64, 64), None, False), ((80, 64), None, False), ((88, 64), None, True), ((64, 40), None, True),
        ((128, 128), "fast", True), ((128, 128), "highres", False), ((128, 40), "highres", True),
    ],
)  # fmt: skip
def test_how_far_is_far_for_a_size(size, unet, far):
    assert bool(far_size(size, (64, 64), unet)) == far


# ---- words -----------------------------------------------------------------------------------------------------------


def test_everything_is_listed_within_80_columns(run, model):
    shown = run("words", "--model", model)
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) < 80
    for known in ("4 things", "cat (kitty), polar bear", "flat (flat design)", "grey (gray)", "two (2)", "next to"):
        assert known in shown.out
    assert "on a grey background, at night" in shown.out  # "a orange" would be no English
    assert re.search(r'sd-ext generate "flat orange cat"', shown.out)


def test_tables_may_be_empty(run, model):
    words = {"things": {"none": [], "animals": [{"names": ["cat"]}]}, "styles": {"flat": []}, "colours": {"": [""]}}
    (model / FILE).write_text(json.dumps(words))
    shown = run("words", "--model", model)
    assert (shown.code, shown.err) == (0, "")
    assert 'sd-ext generate "cat"' in shown.out
    (model / FILE).write_text(json.dumps({"things": {"none": []}}))
    assert "does not tell which words it knows" in run("words", "--model", model).err


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (["cats"], ["cats: a thing (animals), also cat, kitty"]),
        (["orange", "Kitty"], ["orange: a colour", "kitty: a thing (animals), also cat"]),
        (["two lighthouses"], ["two: a number", "lighthouses: not known; near: house"]),
        (["zzzz"], ["zzzz: not known"]),
        (["cat, feline"], ["cat: a thing (animals), also kitty", "feline: known beside cat"]),
        (["a", "Photo"], ["a: known", "photo: known"]),
        (["colours"], ["colours     orange, grey (gray)"]),
        (["Places"], ["places      house, tower"]),
    ],
)
def test_words_are_looked_up(run, model, text, lines):
    shown = run("words", *text, "--model", model)
    assert (shown.code, shown.out.splitlines(), shown.err) == (0, lines, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "{silent}"], "does not tell which words it knows"),
        (["cat", "--model", "nowhere"], "no such model folder"),
        (["", "--model", "{model}"], "the text to look up is empty"),
        (["...", "--model", "{model}"], "holds no word"),
        (["\udce9", "--model", "{model}"], "not valid UTF-8"),
    ],
)
def test_bad_input_is_one_sentence(run, model, tiny_pipeline_dir, arguments, said):
    refused = run("words", *(a.format(model=model, silent=tiny_pipeline_dir) for a in arguments))
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert said in refused.err


# ---- the embedded model ----------------------------------------------------------------------------------------------


def test_the_embedded_model_says_its_guidance():
    assert read_words(sd_ext.pretrained_path()).guidance > 1


def test_the_embedded_model_tells_what_it_knows(run):
    words = read_words(sd_ext.pretrained_path())
    assert (sd_ext.pretrained_path() / FILE).stat().st_size < 60_000
    names = [thing.names[0] for things in words.things.values() for thing in things]
    assert len(set(names)) == len(names) > 100
    assert {"red", "blue"} <= set(words.colours)
    assert len(words.styles) >= 3
    said = ["a red apple", "two cats", "THE DOG at night", "a cat next to a house, 3d", "a rocket on a blue background"]
    assert not [piece.text for text in said for piece in words.pieces(text) if not piece.meanings]
    assert "house" in run("words", "lighthouse").out
    shown = run("words").out
    assert max(map(len, shown.splitlines())) < 80
    flat = " ".join(shown.split())
    assert all(name in flat for name in names)
