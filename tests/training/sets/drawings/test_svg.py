"""SVG: what is harmless is rendered and fills its square, what is not is refused."""

import numpy as np
import pytest

from sd_ext.errors import InputError
from sd_ext.training.sets.drawings.svg import check, render, wrap

COPIES = "".join(f'<g id="n{i + 1}">{f"<use href={chr(34)}#n{i}{chr(34)}/>" * 10}</g>' for i in range(9))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<image href="file:///etc/passwd"/>', "<image>"),
        ('<use href="other.svg#a"/>', "refers to 'other.svg#a'"),
        ('<use xlink:href="http://example.org/#a"/>', "refers to"),
        ('<rect fill="url(http://example.org/a.svg#b)"/>', "refers to"),
        ("<rect fill=\"url( 'a.svg#b')\"/>", "refers to"),
        ("<style>@import 'a.css'</style>", "<style>"),
        ("<script>alert(1)</script>", "<script>"),
        ("<text>words</text>", "<text>"),
        ("<foreignObject/>", "<foreignObject>"),
        ('<filter><feImage href="#a"/></filter>', "<feImage>"),
        ("<g>", "not XML"),
        ("<!-- a -->", "entities"),
        (f'<g id="n0"><rect/></g>{COPIES}', "more than 20,000 shapes"),
        ('<g id="a"><use href="#a"/></g>', "levels deep"),
        ("<g>" * 60 + "</g>" * 60, "levels deep"),
        ("<g/>" * 300_000, "characters"),
    ],
)
def test_what_is_refused(body, said):
    with pytest.raises(InputError, match=said):
        check(wrap(body, 0, 0, 32, 32))


def test_entities_are_refused_before_they_are_read():
    with pytest.raises(InputError, match="entities"):
        check('<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg xmlns="http://www.w3.org/2000/svg"/>')


@pytest.mark.parametrize("box", [(0, 0, 0, 32), (0, 0, float("nan"), 32), (0, 0, 32, -1), (0, 0, 1e9, 1)])
def test_a_box_that_is_none(box):
    with pytest.raises(InputError, match="its box is"):
        wrap("<g/>", *box)


@pytest.mark.parametrize("rest", ['height="0"', 'height="9" x="500"', 'height="9" fill="none"'])
def test_a_drawing_of_nothing(rest):
    pytest.importorskip("resvg_py")
    with pytest.raises(InputError, match="draws nothing"):
        render(wrap(f'<rect width="9" {rest}/>', 0, 0, 32, 32), 32)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 32), (10, 40)])
def test_drawings_touch_the_sides_of_their_square_and_keep_proportions(size, width, height):
    pytest.importorskip("resvg_py")
    body = f'<rect x="{width * 0.3}" y="{height * 0.3}" width="{width * 0.4}" height="{height * 0.2}" fill="#0000ff"/>'
    pixels = render(wrap(body, 0, 0, width, height), size)
    assert pixels.shape == (size, size, 4)
    rows, columns = (np.flatnonzero((pixels[..., 3] > 128).any(axis)) for axis in (1, 0))
    tall, wide = len(rows), len(columns)
    assert 0.93 * size <= max(tall, wide) <= size  # but for the soft edges of what was scaled up
    assert tall / wide == pytest.approx(height * 0.2 / (width * 0.4), rel=0.15)
    assert np.abs(pixels[size // 2, size // 2].astype(int) - (0, 0, 255, 255)).max() <= 6
