"""Tokens in chunks of ten: commas move breaks, learned words stay whole, nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_ext.errors import InputError
from sd_ext.prompts.chunks import cut

COMMA = 0


def chunks(*sections, length=10, comma=COMMA):
    made = cut([[([token], 1.0) for token in section] for section in sections], length, comma)
    return [chunk.tokens for chunk in made]


def test_what_fits_is_one_chunk():
    assert chunks([]) == [[]]
    assert chunks(range(1, 11)) == [[*range(1, 11)]]
    assert chunks(range(1, 12)) == [[*range(1, 11)], [11]]


def test_what_follows_the_last_comma_goes_to_the_next_chunk():
    assert chunks([1, 2, 3, 0, 5, 0, 7, 8, 9, 10, 11]) == [[1, 2, 3, 0, 5, 0], [7, 8, 9, 10, 11]]
    assert chunks([1, 2, 3, 0, 5, 0, 7, 8, 9, 10, 11], comma=None) == [[1, 2, 3, 0, 5, 0, 7, 8, 9, 10], [11]]
    assert chunks([1, 2, 3, 0, 5, 0, 7, 8, 9, 10]) == [[1, 2, 3, 0, 5, 0, 7, 8, 9, 10]]  # it is not too long
    assert chunks([*range(1, 11), 0, 12]) == [[*range(1, 11)], [0, 12]]  # the comma itself is what does not fit


def test_a_comma_further_back_than_twenty_does_not():
    """Of 75 tokens, number 56 (from 1) is the first whose comma is among the last twenty."""
    for place, first in ((54, 75), (55, 56)):
        tokens = [1] * 80
        tokens[place] = COMMA
        assert [len(chunk) for chunk in chunks(tokens, length=75)] == [first, 80 - first]


def test_breaks_fill_the_chunk_up():
    assert chunks([1], [2]) == [[1], [2]]
    assert chunks([], [2]) == [[], [2]]
    assert chunks([1], [], [2]) == [[1], [], [2]]
    assert chunks([1], []) == [[1]]  # nothing follows


def test_a_learned_word_is_not_torn():
    made = cut([[([1] * 8, 1.0), ([2, 3, 4], 1.5), ([5], 1.0)]], 10)
    assert [chunk.tokens for chunk in made] == [[1] * 8, [2, 3, 4, 5]]
    assert made[1].weights == [1.5, 1.5, 1.5, 1.0]
    assert [chunk.weighted for chunk in made] == [False, True]
    with pytest.raises(InputError, match="a word of 11 tokens"):
        cut([[([1] * 11, 1.0)]], 10)


@given(st.lists(st.integers(0, 5), max_size=120), st.integers(1, 30))
def test_nothing_is_lost_and_weights_go_along(tokens, length):
    made = cut([[([token], float(place)) for place, token in enumerate(tokens)]], length, COMMA)
    assert [token for chunk in made for token in chunk.tokens] == tokens
    assert [weight for chunk in made for weight in chunk.weights] == [float(place) for place in range(len(tokens))]
    assert all(len(chunk.tokens) <= length for chunk in made)
    assert all(chunk.tokens for chunk in made) or not tokens
