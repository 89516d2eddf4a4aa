"""The grammar, by A1111's published rules; the numbers are products of 1.1, 1/1.1 and the weights, taken by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_ext.errors import InputError
from sd_ext.prompts.parser import Run, parse, unread

CASES = {
    "": [[]],
    "red apple": [[("red apple", 1)]],
    "a (red) apple": [[("a ", 1), ("red", 1.1), (" apple", 1)]],
    "a ((red)) apple": [[("a ", 1), ("red", 1.21), (" apple", 1)]],
    "a (red:1.3) apple": [[("a ", 1), ("red", 1.3), (" apple", 1)]],
    "a (red: 0.5 ) apple": [[("a ", 1), ("red", 0.5), (" apple", 1)]],
    "a (red:-1)": [[("a ", 1), ("red", -1)]],
    "a (red:.5)": [[("a ", 1), ("red", 0.5)]],
    "a [red] apple": [[("a ", 1), ("red", 1 / 1.1), (" apple", 1)]],
    "a [[red]]": [[("a ", 1), ("red", 1 / 1.21)]],
    "([red])": [[("red", 1)]],
    "((red:1.5) apple)": [[("red", 1.65), (" apple", 1.1)]],
    "(a (red:2) (apple:3):0.5)": [[("a ", 0.5), ("red", 1), (" ", 0.5), ("apple", 1.5)]],
    "(red)(apple)": [[("redapple", 1.1)]],  # neighbours of one weight are one text
    "(red apple": [[("red apple", 1.1)]],  # never closed: to the end
    "red [apple": [[("red ", 1), ("apple", 1 / 1.1)]],
    "red) apple]": [[("red) apple]", 1)]],  # never opened: characters
    "red:1.3)": [[("red:1.3)", 1)]],
    "[red:1.3)]": [[("red:1.3)", 1 / 1.1)]],  # a weight closes round brackets only
    "(red [apple) pie]": [[("red ", 1.1), ("apple", 1), (" pie", 1 / 1.1)]],  # the two kinds do not know each other
    r"a \(red\) apple": [[("a (red) apple", 1)]],
    r"(\(red\):1.5)": [[("(red)", 1.5)]],
    r"\[a\] \\": [[(r"[a] " + "\\", 1)]],
    r"a\b": [[("ab", 1)]],
    "(a:b:2)": [[("a:b", 2)]],
    "12:30": [[("12:30", 1)]],
    "(red:1e3)": [[("red:1e3", 1.1)]],
    "red BREAK apple": [[("red", 1)], [("apple", 1)]],
    "red\nBREAK\napple": [[("red", 1)], [("apple", 1)]],
    "BREAK red": [[], [("red", 1)]],
    "red BREAK BREAK apple": [[("red", 1)], [], [("apple", 1)]],
    "(red BREAK apple:2)": [[("red", 2)], [("apple", 2)]],
    "BREAKING break": [[("BREAKING break", 1)]],
}


@pytest.mark.parametrize("prompt", CASES)
def test_by_hand(prompt):
    made = parse(prompt)
    assert [[text for text, _ in section] for section in made] == [[text for text, _ in each] for each in CASES[prompt]]
    for section, expected in zip(made, CASES[prompt], strict=True):
        assert [run.weight for run in section] == pytest.approx([weight for _, weight in expected], rel=1e-12)


@pytest.mark.parametrize("prompt", ["(red:1.2.3)", "a (b:.)"])
def test_what_is_no_number(prompt):
    with pytest.raises(InputError, match=r"is no number; write \(words:1\.3\)"):
        parse(prompt)


LETTERS = st.text(st.characters(codec="utf-8").filter(lambda c: c not in "()[]:\\"), min_size=1).filter(
    lambda text: "BREAK" not in text
)


@given(LETTERS)
def test_text_without_brackets_is_itself(text):
    assert parse(text) == [[Run(text, 1.0)]]


@given(st.text(st.sampled_from("()[]\\:aA 1")))
def test_escaped_text_is_itself(text):
    escaped = "".join(f"\\{letter}" if letter in "()[]\\" else letter for letter in text)
    assert parse(escaped) == ([[Run(text, 1.0)]] if text else [[]])


@given(st.text(st.sampled_from("()[]\\ab BREAK")))
def test_anything_is_parsed_and_no_letter_is_lost(text):
    letters = "".join(run.text for section in parse(text) for run in section)
    assert letters.count("a") == text.count("a")
    assert letters.count("b") == text.count("b")


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("x <lora:style:0.8>", "<lora:style:0.8> names a file"),
        ("[cat:dog:0.5]", "between steps"),
        ("[dog:10]", "between steps"),
        ("[cat|dog]", "takes turns"),
        ("cat AND dog", "AND joins"),
    ],
)
def test_what_means_more_in_a1111_is_named(prompt, what):
    (sentence,) = unread(prompt)
    assert what in sentence


@pytest.mark.parametrize("prompt", ["[cat]", "(cat:1.2)", "a: b", "ANDROID and", "<cat>", "a|b"])
def test_what_does_not_is_not(prompt):
    assert unread(prompt) == []
