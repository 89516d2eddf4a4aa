"""Concepts, grammar and held-out sets as files say them: they fit together, and their English is right."""

import re

import pytest

from sd_ext.errors import InputError
from sd_ext.training.sets.drawings.colours import NAMES
from sd_ext.training.sets.drawings.concepts import read_concepts
from sd_ext.training.sets.drawings.grammar import read_grammar
from sd_ext.training.sets.drawings.grounds import SCENERIES, paint_ground
from sd_ext.training.sets.drawings.held_out import DECLARED, read_held_out
from sd_ext.training.sets.drawings.packages import usable

SPEECH = read_grammar().speech


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        ("apple", "apple", "an apple"),
        ("red apple", "apple", "a red apple"),
        ("unicorn", "unicorn", "a unicorn"),
        ("ufo", "ufo", "a ufo"),
        ("orange hourglass", "hourglass", "an orange hourglass"),
        ("hourglass", "hourglass", "an hourglass"),
        ("8-bit cat", "cat", "an 8-bit cat"),
        ("grapes", "grapes", "some grapes"),
        ("yellow cheese", "cheese", "some yellow cheese"),
    ],
)
def test_articles(words, name, said):
    assert SPEECH.article(words, name) == said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("peach", "peaches"),
        ("toothbrush", "toothbrushes"),
        ("bus", "buses"),
        ("mouse", "mice"),
        ("wolf", "wolves"),
        ("maple leaf", "maple leaves"),
        ("police car", "police cars"),
        ("old woman", "old women"),
        ("sheep", "sheep"),
        ("grapes", "grapes"),
        ("bread", "bread"),
    ],
)
def test_plurals(name, said):
    assert SPEECH.plural(name) == said


def test_concepts_are_plain_names_and_more_than_a_hundred():
    concepts = read_concepts()
    assert len(concepts) > 100
    for concept in concepts:
        for name in concept.names:
            assert re.fullmatch(r"[a-z]+([ -][a-z]+){0,3}", name), name
    assert {"cat", "apple", "car", "heart", "star"} <= {concept.name for concept in concepts}


def test_what_is_held_out_exists_and_leaves_each_colour_and_thing_in_training():
    held_out, names = read_held_out(), {concept.name for concept in read_concepts()}
    for colour, name in held_out.pairs:
        assert colour in NAMES
        assert name in names, name
    for name in {name for pair in held_out.together for name in pair} | {name for _, name in held_out.counted}:
        assert name in names, name
        assert sum(held_out.pair(colour, name) for colour in NAMES) <= 3, name
    for colour in NAMES:
        assert sum(held_out.pair(colour, name) for name in names) < 10
    assert all(SPEECH.counted(name) for _, name in held_out.counted)
    for name in names:
        kept = [p for p in usable() if p.use == "train" and not held_out.drawing(name, p.name)]
        assert len(kept) >= 4, f"{name} is drawn by {len(kept)} sets in training"


def test_held_out_phrasings_are_not_in_the_grammar():
    grammar = read_grammar()
    assert not set(read_held_out().phrasings) & set(grammar.one)
    assert len(read_held_out().phrasings) >= 5


def test_every_form_has_only_slots_that_are_filled():
    grammar = read_grammar()
    slots = {
        "one": {"thing", "a thing", "a single thing"}, "several": {"number", "things"}, "alone": {"ground", "a ground"},
        **{place: {"one", "a one", "two", "a two"} for place in ("beside", "above", "apart")},
    }  # fmt: skip
    for table, known in slots.items():
        for form in getattr(grammar, table):
            assert set(re.findall(r"\{([^}]*)\}", form)) <= known, form
    for form in read_held_out().phrasings:
        assert set(re.findall(r"\{([^}]*)\}", form)) <= slots["one"], form
    for table in ("beside", "above", "apart"):  # each names both things
        assert all("one}" in form and "two}" in form for form in getattr(grammar, table))


def test_the_grammar_and_the_code_know_the_same_grounds_and_styles():
    grammar = read_grammar()
    assert set(grammar.scenery) == set(SCENERIES)
    assert {p.style for p in usable() if p.use == "train"} == set(grammar.styles)
    assert set(grammar.style_behind) == set(grammar.style_before) == {*grammar.styles, "silhouette", "pixels"}
    silent = {style for style, said in grammar.style_behind.items() if not said}
    assert silent == {"shaded"} == {style for style in silent if not grammar.style_before[style]}
    with pytest.raises(InputError, match="unknown ground 'nigh'"):
        paint_ground("nigh", "", 8, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[animals]\ncat = '🐈'\n'kitty, cat' = '🐱'\n", "'cat' stands twice"),
        ("[animals]\ncat = '🐈'\nlion = '🐈'\n", "stands twice"),
        ("[animals]\ncat = ''\n", "needs names and at least one emoji"),
        ("[animals]\ncat = 3\n", "must be text"),
    ],
)
def test_concepts_that_cannot_work(tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_concepts(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[pairs]", "[pears]", r"\[pears\] is none of"),
        ("percent = 6", "percent = 60", "must be from 0 to below 50"),
        ("percent = 6", "percent = 'few'", "must be a number"),
        ("counted = { 2 =", "counted = { two =", "'two', which is no number"),
    ],
)
def test_held_out_files_that_cannot_work(tmp_path, before, after, said):
    text = DECLARED.read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "h.toml").write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_held_out(tmp_path / "h.toml")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[number]", "[nummer]", r"\[nummer\] is no table"),
        ("[alone]", "[alone]\n'x' = -1", "needs weights from 0 on"),
        ('purple = ["violet"]', 'mauve = ["violet"]', "'mauve', which is no colour"),
        ("one = 70", "one = 'often'", "must be a number"),
    ],
)
def test_grammars_that_cannot_work(tmp_path, before, after, said):
    from sd_ext.training.sets.drawings.grammar import DECLARED as GRAMMAR

    text = GRAMMAR.read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "g.toml").write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_grammar(tmp_path / "g.toml")
