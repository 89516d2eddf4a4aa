"""Words as buttons."""

from __future__ import annotations

import re

from sd_ext.models.words import Thing, Words
from sd_ext.ui.words import as_buttons, words_for


def test_every_thing_of_the_embedded_model_is_a_button():
    words = words_for("embedded")
    named = set(re.findall(r'data-word="([^"]*)"', as_buttons(words)))
    assert {thing.names[0] for thing in words.every_thing} <= named
    assert {"red", "two", "next to", "on a red background"} <= named


def test_a_strangers_words_are_escaped():
    shown = as_buttons(Words(things={"<b>": [Thing(('"><script>alert(1)</script>',))]}))
    assert "<script" not in shown and "<b>" not in shown


def test_a_model_without_words_says_so(tiny_pipeline_dir):
    assert words_for(str(tiny_pipeline_dir)) is None
    assert words_for("missing") is None
    assert "does not tell which words" in as_buttons(None)
