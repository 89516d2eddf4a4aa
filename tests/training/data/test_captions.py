"""Captions said in other ways, and results read ahead."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_ext.errors import InputError
from sd_ext.training.data.captions import CaptionTricks

TAGS = st.lists(st.text("abcdef é", min_size=1).map(str.strip).filter(bool), max_size=8)
SEED = st.integers(0, 2**32)
NUMBER = st.integers(0, 1000)


def split(caption: str, separator: str = ",") -> list[str]:
    return [tag.strip() for tag in caption.split(separator)] if caption else []


@settings(deadline=None)
@given(TAGS, SEED, NUMBER, st.integers(0, 9), st.floats(0, 1), st.booleans())
def test_kept_tags_never_move_and_no_tag_is_invented(tags, seed, number, kept, dropout, shuffle):
    said = split(CaptionTricks(shuffle, dropout, kept).variant(", ".join(tags), seed, number))
    assert said[:kept] == tags[:kept]
    assert Counter(said) <= Counter(tags)


@settings(deadline=None)
@given(TAGS, SEED, NUMBER, st.integers(0, 9))
def test_shuffling_keeps_every_tag(tags, seed, number, kept):
    said = split(CaptionTricks(True, keep_tokens=kept).variant(",".join(tags), seed, number))
    assert Counter(said) == Counter(tags)


@settings(deadline=None)
@given(TAGS, SEED, NUMBER, st.floats(0, 1, exclude_min=True))
def test_dropping_keeps_the_order(tags, seed, number, dropout):
    left = iter(tags)
    assert all(tag in left for tag in split(CaptionTricks(tag_dropout=dropout).variant(",".join(tags), seed, number)))


@settings(deadline=None)
@given(st.text(), SEED, NUMBER)
def test_without_tricks_a_caption_stays_as_it_is(caption, seed, number):
    assert CaptionTricks().variant(caption, seed, number) == caption
    with_prefix = f"sks style, {caption}" if caption else "sks style,"
    assert CaptionTricks(prefix="sks style,", keep_tokens=2).variants(caption, seed, 5) == [with_prefix]


def test_a_variant_depends_on_caption_seed_and_number_only():
    tricks, caption = CaptionTricks(True, 0.3), ", ".join("abcdefghijkl")
    assert tricks.variants(caption, 1, 6) == [tricks.variant(caption, 1, n) for n in range(6)]
    said = [tricks.variant(caption, s, n) for s in range(3) for n in range(3)]
    assert len(set(said)) == 9
    other = tricks.variant(caption.replace("a", "z"), 0, 0).replace("z", "a")
    assert other != said[0]


def test_tags_are_left_out_as_often_as_asked():
    tricks, caption = CaptionTricks(tag_dropout=0.25, keep_tokens=1), ", ".join("abcdefghijk")
    counts = Counter(tag for said in tricks.variants(caption, 0, 2000) for tag in split(said))
    assert counts["a"] == 2000
    assert all(abs(counts[tag] / 2000 - 0.75) < 0.05 for tag in "bcdefghijk")  # 5 standard deviations
    assert CaptionTricks(tag_dropout=1.0, keep_tokens=1, prefix="sks").variant(caption, 0, 0) == "sks a"


def test_every_order_is_as_likely():
    counts = Counter(CaptionTricks(True).variants("a, b, c", 0, 6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 5 * 29 for count in counts.values())


def test_other_separators():
    assert split(CaptionTricks(True, separator="|").variant("a b|c d", 0, 0), "|") in (["a b", "c d"], ["c d", "a b"])
    assert CaptionTricks(tag_dropout=0.5, keep_tokens=2, separator=" ").variant("a  b", 0, 0) == "a b"


@pytest.mark.parametrize("wrong", [{"tag_dropout": 1.5}, {"tag_dropout": -0.1}, {"keep_tokens": -1}, {"separator": ""}])
def test_tricks_that_cannot_be(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        CaptionTricks(**wrong)
