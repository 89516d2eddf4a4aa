"""Scenes: drawn anew and alike, held out where they must be, and said as they are seen."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sd_ext.errors import InputError
from sd_ext.training.sets.drawings.book import Book, read_book, tags_of
from sd_ext.training.sets.drawings.captions import Speaker, slip
from sd_ext.training.sets.drawings.colours import NAMES, main_colour
from sd_ext.training.sets.drawings.concepts import read_concepts
from sd_ext.training.sets.drawings.folder import Artist
from sd_ext.training.sets.drawings.grammar import MADE, Scenes, read_grammar
from sd_ext.training.sets.drawings.grounds import SCENERIES
from sd_ext.training.sets.drawings.held_out import read_held_out
from sd_ext.training.sets.drawings.paint import paint, places
from sd_ext.training.sets.drawings.scene import Scene

GRAMMAR, HELD_OUT = read_grammar(), read_held_out()


@pytest.fixture(scope="module")
def artist(book):
    return Artist(book)


@pytest.fixture(scope="module")
def scenes(book):
    """(scene, caption, split) of two thousand numbers, not painted."""
    scenes, speaker, made = Scenes(book, GRAMMAR, HELD_OUT), Speaker(GRAMMAR, HELD_OUT), []
    for number in range(2000):
        draw = np.random.default_rng([1, number])
        scene = scenes.draw(draw)
        made.append((scene, *speaker.say(scene, draw)))
    return made


def plain(book, concept: str, **changes) -> Scene:
    """One thing of the flat style on white, as it is drawn."""
    drawing = next(d for d in book.drawings if d.concept == concept and d.set == "twemoji")
    return replace(Scene("one", (drawing,), ("",), 1, "flat", "white"), **changes)


def test_the_book_knows_sets_styles_and_colours(book):
    assert {d.concept for d in book.drawings} == {"apple", "cat", "star", "fish", "tree", "car", "dog", "grapes"}
    assert all(d.colour == "red" for d in book.drawings if d.concept == "apple")
    assert all("blue" in d.becomes for d in book.drawings if d.concept == "apple")
    assert {d.split for d in book.drawings if d.set == "fluent-high-contrast"} == {"style"}
    for d in book.drawings:
        assert d.split == "style" or (d.split == "drawings") == HELD_OUT.drawing(d.concept, d.set)
    for drawing in book.drawings:
        assert book.pixels(drawing).shape == (48, 48, 4)
        assert drawing.tags[0] == "nice"


def test_tags_leave_out_what_is_a_name_or_no_word():
    cat = next(c for c in read_concepts() if c.name == "cat")
    assert tags_of(cat, {"1f408": ("cat", "pet", "x2"), "1f431": ("Pet", "face", "kitty")}) == ("pet", "face")


def test_a_picture_depends_on_seed_and_number_only(artist):
    first = [artist.draw(3, number, 32) for number in (5, 6, 7)]
    again = [artist.draw(3, number, 32) for number in (7, 6, 5)][::-1]
    other = [artist.draw(4, number, 32) for number in (5, 6, 7)]
    for a, b in zip(first, again, strict=True):
        assert a.picture.tobytes() == b.picture.tobytes()
        assert (a.caption, a.split, a.scene) == (b.caption, b.split, b.scene)
    assert [a.scene for a in first] != [b.scene for b in other]
    assert artist.draw(3, 5, 64).caption == first[0].caption


def test_no_two_pictures_of_an_epoch_are_alike(artist):
    drawn = [artist.draw(0, number, 32) for number in range(60)]
    assert len({d.picture.tobytes() for d in drawn}) == 60


def test_training_sees_nothing_that_is_held_out(scenes):
    seen = Counter()
    for scene, caption, split in scenes:
        assert all(drawing.split != "style" for drawing in scene.drawings)
        pairs = [HELD_OUT.pair(c, n) for c, n in zip(scene.seen_colours, scene.concepts, strict=True)]
        together = HELD_OUT.composition(scene.concepts, scene.number)
        new = any(drawing.split == "drawings" for drawing in scene.drawings)
        seen[split] += 1
        if split in ("train", "phrasings"):
            assert not any(pairs) and not together and not new, caption
        assert (split == "drawings") == new
        assert split != "pairs" or any(pairs)
        assert split != "compositions" or together
    assert seen["train"] > 1000
    assert min(seen[split] for split in ("pairs", "compositions", "phrasings", "drawings")) > 0, seen


def test_held_out_phrasings_are_in_their_split_and_nowhere_else(scenes):
    for scene, caption, split in scenes:
        if scene.shows == "one" and scene.style not in MADE:
            told = caption.lower()
            asked = any(told.startswith(begin) for begin in ("can you draw", "look at", "my favourite", "show me"))
            assert not asked or split == "phrasings", caption
            assert split != "phrasings" or any(w in told for form in HELD_OUT.phrasings for w in _words(form)), caption


def _words(form: str) -> list[str]:
    return [part.strip(" ,") for part in re.split(r"\{[a-z ]+\}", form) if part.strip(" ,")]


def test_captions_say_what_is_seen(scenes):
    tally = Counter()
    for scene, caption, _ in scenes:
        text = caption.lower().rstrip(".")
        known = any(n in text for d in scene.drawings for n in (*d.names, GRAMMAR.speech.plural(d.concept)))
        tally[known or scene.shows == "alone"] += 1  # a slip of the pen hides a few
        for wanted in scene.colours:
            said = [wanted, *GRAMMAR.colour_said.get(wanted, [])]
            tally["colour", not wanted or wanted == "black" or any(word in text for word in said)] += 1
        if scene.shows == "several":
            tally["number", any(w in text for w in GRAMMAR.number_said[str(scene.number)])] += 1
        if scene.style in MADE:
            tally["made", any(w in text for w in ("silhouette", "pixel", "8-bit"))] += 1
        assert "{" not in text and "  " not in text and text == text.strip(), caption
    assert tally[False] <= 0.02 * tally[True]
    assert tally["colour", False] <= 0.02 * tally["colour", True]
    assert tally["made", False] <= 0.05 * tally["made", True]
    assert 0.55 < tally["number", True] / (tally["number", True] + tally["number", False]) < 0.95


def test_things_stand_out_from_their_ground(scenes):
    for scene, caption, _ in scenes:
        seen = [colour or drawing.main for colour, drawing in zip(scene.colours, scene.drawings, strict=True)]
        assert scene.ground_colour not in seen, caption
        assert not (scene.ground in ("dark", "black") and "black" in seen), caption
        if scene.ground in SCENERIES and scene.shows != "alone":
            assert not {*GRAMMAR.scenery[scene.ground]["hides"]} & {*seen}, caption
        if scene.style in MADE:
            assert scene.ground not in SCENERIES


def test_what_is_counted_can_be_counted_and_two_things_are_two(scenes):
    for scene, caption, _ in scenes:
        if scene.shows == "several":
            assert GRAMMAR.speech.counted(scene.concepts[0]), caption
            assert 2 <= scene.number <= 4
        if scene.shows == "two":
            assert len(set(scene.concepts)) == 2, caption
            assert len({drawing.style for drawing in scene.drawings}) == 1


def blobs(picture, ground: int = 255) -> int:
    """How many separate things are on a plain ground."""
    from scipy.ndimage import label

    return label((np.asarray(picture).astype(int) - ground).__abs__().max(-1) > 60)[1]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_as_many_things_are_painted_as_are_told(book, number):
    shows = "several" if number > 1 else "one"
    scene = plain(book, "fish", shows=shows, number=number, colours=("red",))
    for seed in range(8):
        assert blobs(paint(scene, book, 64, np.random.default_rng(seed))) == number


@pytest.mark.parametrize("place", ["beside", "above", "apart"])
def test_two_things_are_where_they_are_told(book, place):
    red, blue = (plain(book, name).drawings[0] for name in ("apple", "fish"))
    scene = Scene("two", (red, blue), ("", ""), 1, "flat", "white", place=place)
    for seed in range(8):
        pixels = np.asarray(paint(scene, book, 64, np.random.default_rng(seed))).astype(int)
        is_red, is_blue = pixels[..., 0] - pixels[..., 2] > 100, pixels[..., 2] - pixels[..., 0] > 100
        (y0, x0), (y1, x1) = (np.argwhere(mask).mean(0) for mask in (is_red, is_blue))
        assert abs(x0 - x1) + abs(y0 - y1) > 20
        assert place != "beside" or x1 - x0 > 20
        assert place != "above" or y1 - y0 > 20


@pytest.mark.parametrize("colour", ["blue", "green", "purple", "pink", "yellow"])
def test_a_turned_thing_is_painted_in_its_colour(book, colour):
    picture = paint(plain(book, "apple", colours=(colour,)), book, 64, np.random.default_rng(0))
    pixels = np.asarray(picture)
    opaque = (pixels.min(-1) < 250)[..., None] * np.full((64, 64, 1), 255, np.uint8)
    assert main_colour(np.concatenate([pixels, opaque.astype(np.uint8)], -1))[0] == colour


def test_silhouettes_have_one_colour_and_pixel_art_sixteen_squares_a_side(book):
    scene = plain(book, "car", style="silhouette", colours=("green",))
    flat = np.asarray(paint(scene, book, 64, np.random.default_rng(0)))
    inside = flat[(flat.astype(int) - 255).__abs__().max(-1) > 200]
    assert len(np.unique(inside, axis=0)) <= 3
    pixels = np.asarray(paint(plain(book, "car", style="pixels"), book, 64, np.random.default_rng(0)))
    squares = pixels.reshape(16, 4, 16, 4, 3)
    assert (squares == squares[:, :1, :, :1]).all()


def test_everything_stays_inside_the_picture(scenes):
    for number, (scene, caption, _) in enumerate(scenes[:600]):
        for x, y, side in places(scene, np.random.default_rng(number)):
            assert 0 < side <= 1
            assert -1e-6 <= x - side / 2 <= x + side / 2 <= 1 + 1e-6, caption
            assert -1e-6 <= y - side / 2 <= y + side / 2 <= 1 + 1e-6, caption


@pytest.mark.parametrize("ground", ["white", "tint", "coloured", "dark", "black", *SCENERIES])
def test_grounds_differ_each_time_and_are_pictures(book, ground):
    from sd_ext.training.sets.drawings.grounds import paint_ground

    made = [paint_ground(ground, "red", 32, np.random.default_rng(seed)) for seed in range(3)]
    assert all(m.shape == (32, 32, 3) and m.dtype == np.uint8 for m in made)
    assert ground in ("white", "black") or not (made[0] == made[1]).all()


def test_coloured_grounds_have_their_colour():
    from sd_ext.training.sets.drawings.grounds import paint_ground

    for colour in NAMES:
        for seed in range(5):
            ground = paint_ground("coloured", colour, 8, np.random.default_rng(seed))
            assert main_colour(np.dstack([ground, np.full((8, 8), 255, np.uint8)]))[0] == colour


def test_a_slip_changes_two_neighbours_inside_a_word():
    for seed in range(20):
        slipped = slip("a butterfly", np.random.default_rng(seed))
        assert sorted(slipped) == sorted("a butterfly")
        assert slipped[:3] == "a b"
    assert slip("a cat", np.random.default_rng(0)) == "a cat"


def test_books_that_cannot_be_read(tmp_path, book):
    with pytest.raises(InputError, match="is not there"):
        read_book(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(InputError, match="line 1 lacks"):
        read_book(tmp_path)
    stranger = replace(book.drawings[0], file_name="../secret.png")
    with pytest.raises(InputError, match="is not a path inside"):
        Book(tmp_path, [stranger]).pixels(stranger)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match="is no drawing"):
        Book(tmp_path, []).pixels(replace(stranger, file_name="a.png"))
    with pytest.raises(InputError, match="in none of the grammar's styles"):
        Scenes(Book(tmp_path, [replace(stranger, style="cubist", split="train")]), GRAMMAR, HELD_OUT)


def test_a_style_of_a_single_thing_is_drawn_alone(book):
    lonely = [d for d in book.drawings if d.set == "noto" and d.concept == "grapes"]  # which are not counted, either
    scenes, speaker = Scenes(Book(book.folder, lonely), GRAMMAR, HELD_OUT), Speaker(GRAMMAR, HELD_OUT)
    for number in range(100):
        draw = np.random.default_rng([2, number])
        scene = scenes.draw(draw)
        assert scene.shows in ("one", "alone")
        assert speaker.say(scene, draw)[0]


def test_tags_follow_now_and_then(scenes):
    one = [caption.lower() for scene, caption, _ in scenes if scene.shows == "one"]
    assert 0.03 < sum("nice" in caption for caption in one) / len(one) < 0.12
