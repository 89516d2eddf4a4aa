"""`words.json` of a set of drawings: every caption that the set may say is made of what the file says is known."""

from dataclasses import replace

import numpy as np
import pytest

from sd_ext.errors import InputError
from sd_ext.models.words import FILE, read_words
from sd_ext.training.sets.drawings.captions import Speaker
from sd_ext.training.sets.drawings.grammar import Scenes, read_grammar
from sd_ext.training.sets.drawings.held_out import TRAIN, read_held_out
from sd_ext.training.sets.drawings.words import write_words


@pytest.fixture(scope="module")
def words(book, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_words(folder, book.folder.parent, 2.5)
    assert (folder / FILE).stat().st_size < 16_000  # mostly the grammar's
    return read_words(folder)


def test_every_caption_is_known(book, words):
    grammar, held_out = read_grammar(), read_held_out()
    grammar = replace(grammar, words={**grammar.words, "typo": 0, "tag": 40, "style": 80, "other": 50})
    scenes, speaker = Scenes(book, grammar, held_out), Speaker(grammar, held_out)
    said = [speaker.say(scenes.draw(draw), draw) for draw in map(np.random.default_rng, range(800))]
    captions = [caption for caption, split in said if split == TRAIN]
    assert len(set(captions)) > 400
    strange = {piece.text: c for c in captions for piece in words.pieces(c) if not piece.meanings}
    assert not strange


def test_things_are_those_of_the_drawings(book, words):
    named = {thing.names: kind for kind, things in words.things.items() for thing in things}
    assert named == {drawing.names: drawing.kind for drawing in book.drawings}
    cat = next(thing for thing in words.things["animals"] if thing.names[0] == "cat")
    assert cat.plurals == ("cats", "kitties")
    assert words.guidance == 2.5


def test_styles_are_those_with_words(words):
    grammar = read_grammar()
    spoken = {name for name in grammar.style_behind if grammar.style_before[name] or grammar.style_behind[name]}
    assert set(words.styles) == spoken
    assert "high contrast" not in words.styles
    assert "next to" in words.positions
    assert "and" not in words.positions
    assert {"night", "coloured", "white", "grass"} <= set(words.grounds)


def test_a_folder_without_drawings(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.jsonl is not there"):
        write_words(tmp_path, tmp_path, 1.5)
    assert not (tmp_path / FILE).exists()
