"""Colours: names, and drawings in other ones."""

import numpy as np
import pytest

from sd_ext.training.sets.drawings.colours import (
    NAMED,
    NAMES,
    can_become,
    main_colour,
    names_of,
    recolour,
    rgb_of,
    to_lab,
    to_rgb,
)  # fmt: skip


def disc(colour: str, size: int = 24) -> np.ndarray:
    """A shaded disc with a black outline."""
    at = np.arange(size) - size / 2 + 0.5
    away = np.hypot(at[:, None], at[None, :])
    lab = np.broadcast_to(to_lab(rgb_of(NAMED[colour][0])), (size, size, 3)).copy()
    lab[..., 0] += 0.02 * at[:, None] / size
    drawing = np.concatenate([to_rgb(lab), np.full((size, size, 1), 255, np.uint8)], -1)
    drawing[away > size / 2 - 2] = (0, 0, 0, 255)
    drawing[away > size / 2] = 0
    return drawing


def test_oklab_goes_there_and_back():
    colours = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    assert np.abs(to_rgb(to_lab(colours)).astype(int) - colours).max() <= 1
    white, black = to_lab(np.array([[255, 255, 255], [0, 0, 0]], np.uint8))
    assert white == pytest.approx([1, 0, 0], abs=2e-3)
    assert black == pytest.approx([0, 0, 0], abs=2e-3)


def test_examples_of_a_name_have_that_name():
    for number, codes in enumerate(NAMED.values()):
        for code in codes:
            assert names_of(rgb_of(code)) == number, (NAMES[number], code)


@pytest.mark.parametrize("colour", NAMES)
def test_the_main_colour_of_an_outlined_disc(colour):
    main, share = main_colour(disc(colour))
    assert main == colour
    assert share > (0.65 if colour in ("black", "white") else 0.85)  # these two count a third, as outlines do


@pytest.mark.parametrize("main", NAMES)
def test_a_turned_disc_has_the_wanted_colour_and_keeps_outline_and_opacity(main):
    drawing = disc(main)
    for wanted in NAMES:
        if wanted == main:
            continue
        turned = recolour(drawing, main, wanted)
        assert main_colour(turned)[0] == wanted, (main, wanted)
        assert (turned[..., 3] == drawing[..., 3]).all()
        if main not in ("black", "grey"):
            outline = (drawing[..., :3].max(-1) == 0) & (drawing[..., 3] == 255)
            assert turned[outline].max(0)[:3].max() < 60, (main, wanted)


def test_shade_stays_shade():
    drawing = disc("red")
    turned = recolour(drawing, "red", "blue")
    before, after = (to_lab(d[3:-3, 12, :3])[:, 0] for d in (drawing, turned))
    assert (np.sign(np.diff(after))[np.abs(np.diff(after)) > 1e-3] == 1).all()  # darker above, as before
    assert np.diff(before).sum() > 0 < np.diff(after).sum()


def test_nothing_becomes_what_it_is():
    assert "red" not in can_become(disc("red"), "red", 0.5)
    assert can_become(disc("red"), "red", 1.1) == ()
