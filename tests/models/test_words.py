"""What a model answers to, as its `words.json` says: prompts are divided rightly, near words are near."""

import json

import pytest

from sd_ext.errors import ModelError
from sd_ext.models import find_model
from sd_ext.models.near import distance, near
from sd_ext.models.words import FILE, Thing, Words, read_words, split, words_of

WORDS = Words(
    guidance=3.0,
    things={
        "animals": [
            Thing(("cat", "kitty"), ("cats", "kitties"), ("pet", "whiskers", "sea dog")),
            Thing(("dog",), ("dogs",), ("pet",)),
            Thing(("octopus",), ("octopuses",), ("ocean", "pets")),
        ],
        "food": [
            Thing(("orange",), ("oranges",)),
            Thing(("hot dog",), ("hot dogs",)),
            Thing(("strawberry",), ("strawberries",)),
        ],
        "clothes": [Thing(("shirt", "t-shirt"), ("shirts", "t-shirts"))],
        "places": [Thing(("house",), ("houses",)), Thing(("light bulb",), ("light bulbs",))],
        "vehicles": [Thing(("bicycle",), ("bicycles",)), Thing(("fire",), ("fires",))],
    },
    styles={"3d": ["3d", "in 3d"], "pixels": ["pixel art", "8-bit"]},
    colours={"orange": ["orange"], "grey": ["grey", "gray"]},
    numbers={"2": ["two", "2"], "3": ["three", "3"]},
    sizes={"small": ["small", "tiny"]},
    positions=("next to",),
    grounds={"coloured": ["on a {colour} background"], "night": ["at night", "under the stars"]},
    forms=("a photo of", "icon"),
)


def unknown(text: str) -> list[str]:
    return [piece.text for piece in WORDS.pieces(text) if not piece.meanings]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A CAT's photo!", ["a", "cat", "photo"]),
        ("t-shirt, 8-bit", ["t", "shirt", "8", "bit"]),
        ("on {colour}, café 猫🐱", ["on", "café", "猫", "🐱"]),
        ("", []),
    ],
)
def test_words_of_a_text(text, said):
    assert split(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "cat", "Two tiny KITTIES, in 3D, on an orange background", "a hot dog next to a t-shirt",
        "photo of the dog's cat", "an 8-bit octopus under the stars", "gray T-shirts at night.", "",
    ],
)  # fmt: skip
def test_what_captions_are_made_of_is_known(text):
    assert not unknown(text)


@pytest.mark.parametrize(
    ("text", "strange"),
    [
        ("a lighthouse at dusk", ["lighthouse", "dusk"]),
        ("hot cat", ["hot"]),  # a part of a name is no name
        ("five cats", ["five"]),
        ("🐱 cat", ["🐱"]),
        ("pet", ["pet"]),
        ("a cat, pet, whiskers", []),  # tags are known beside the thing's name, as in captions
        ("a house, pet", ["pet"]),
    ],
)
def test_what_is_not_known_is_found(text, strange):
    assert unknown(text) == strange


def test_the_longest_piece_is_taken_and_means_all_it_can():
    pieces = {
        piece.text: {(m.what, m.name) for m in piece.meanings} for piece in WORDS.pieces("orange hot dogs at night")
    }
    assert pieces == {
        "orange": {("food", "orange"), ("colours", "orange")}, "hot dogs": {("food", "hot dog")},
        "at night": {("grounds", "night")},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("lighthouse", ["house"]),  # by its last part
        ("berry", ["strawberry"]),
        ("hot", ["hot dog"]),
        ("bycicle", ["bicycle"]),  # by spelling
        ("catt", ["cat"]),
        ("pets", ["cat", "dog"]),  # by tags, the first ones first
        ("ocean", ["octopus"]),
        ("five", ["two", "three"]),  # never "fire"
        ("17", ["two", "three"]),
        ("tinny", ["tiny"]),
        ("star", ["stars"]),
        ("masterpiece", []),
        ("house" * 20, []),  # no word
        ("x", []),
    ],
)
def test_near_words(word, names):
    found = near(WORDS, word)
    assert found[: len(names)] == names
    assert bool(found) == bool(names)
    assert len(found) <= 3


@pytest.mark.parametrize(
    ("one", "other", "letters"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("cat", "cat", 0),
        ("cat", "cta", 1),
        ("castel", "castle", 1),
        ("kitten", "sitting", 3),
    ],
)
def test_distance(one, other, letters):
    assert distance(one, other) == distance(other, one) == letters


def written(folder, content) -> None:
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_folder_says_what_its_file_says(tmp_path, tiny_pipeline_dir):
    assert read_words(tmp_path) is None
    assert words_of(find_model(tiny_pipeline_dir)) is None
    written(tmp_path, {"guidance": 2, "things": {"animals": [{"names": ["cat"], "plurals": ["cats"]}]}, "new": 1})
    told = read_words(tmp_path)
    assert (told.guidance, told.things) == (2, {"animals": [Thing(("cat",), ("cats",))]})
    assert near(told, "kat") == []
    assert [piece.text for piece in told.pieces("cats yes") if piece.meanings] == ["cats"]
    written(tmp_path, {})
    assert read_words(tmp_path) == Words()
    assert read_words(tmp_path).pieces("a cat")[1].meanings == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "must be an object"),
        ("{", "is not valid JSON"),
        ({"guidance": "strong"}, "guidance must be a number or none, got 'strong'"),
        ({"guidance": -1}, "guidance is -1; it must be above 0"),
        ({"things": {"animals": [{"plurals": ["cats"]}]}}, r"lacks things.animals\[0\].names"),
        ({"things": {"animals": [{"names": []}]}}, "an entry without a name"),
        ({"things": ["cat"]}, "things must be an object"),
        ({"things": {"x": [{"names": ["la " * 13]}]}}, "has more than 12 words"),
        ({"styles": {"3d": "3d"}}, "styles.3d must be a list of texts"),
        ({"positions": [3]}, r"positions\[0\] must be text"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, said):
    written(tmp_path, content)
    with pytest.raises(ModelError, match=said) as refused:
        read_words(tmp_path)
    assert str(tmp_path / FILE) in str(refused.value)
