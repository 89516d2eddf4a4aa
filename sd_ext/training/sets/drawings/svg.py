"""From SVG to pixels, by resvg; what could reach outside, run, or blow up is refused before."""

from __future__ import annotations

import io
import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sd_ext.errors import InputError

MOST_BYTES, MOST_ELEMENTS, DEEPEST = 2**20, 20_000, 40
SHAPES = {"svg", "g", "defs", "use", "symbol", "path", "circle", "ellipse", "rect", "line", "polyline", "polygon"}
PAINT = {"linearGradient", "radialGradient", "stop", "clipPath", "mask", "filter"}
SPACE, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
LARGER = 1.5  # drawings are rendered so much larger, and scaled once their empty border is known


def resvg() -> Any:
    """The renderer.

    Raises:
        InputError: it is not installed; says how to get it.
    """
    try:
        import resvg_py
    except ImportError:
        raise InputError("drawings are rendered by resvg-py: pip install 'sd_ext[drawings]'") from None
    return resvg_py


def wrap(body: str, left: float, top: float, width: float, height: float) -> str:
    """A whole SVG of a drawing's body, square, the drawing in its middle.

    Raises:
        InputError: a box that is no box.
    """
    box = (left, top, width, height)
    if not all(math.isfinite(v) and abs(v) < 1e5 for v in box) or min(width, height) <= 0:
        raise InputError(f"its box is {box}")
    side = max(width, height)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{left:g} {top:g} {side:g} {side:g}">{body}</svg>'


def check(svg: str) -> None:
    """Refuse all but shapes and paint that refer to nothing outside.

    Raises:
        InputError: what is wrong, as the end of a sentence.
    """
    if len(svg) > MOST_BYTES:
        raise InputError(f"it has {len(svg):,} characters")
    if "<!" in svg or "<?" in svg:
        raise InputError("it declares entities or a document type")
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise InputError(f"it is not XML ({error})") from None
    for element in root.iter():
        name = str(element.tag).removeprefix(SPACE)
        if (name not in SHAPES | PAINT and not re.fullmatch("fe[A-Z][A-Za-z]+", name)) or name == "feImage":
            raise InputError(f"it holds <{name[:40]}>")
        for key, value in element.attrib.items():
            key = key.removeprefix("{http://www.w3.org/1999/xlink}")
            if key == "href" and not value.startswith("#"):
                raise InputError(f"it refers to {value[:40]!r}")
            if re.search(r"url\(\s*['\"]?(?!#)", value) or "@import" in value:
                raise InputError(f"it refers to {value[:40]!r}")
    _check_size(root)


def _check_size(root: ElementTree.Element) -> None:
    """Count what is drawn, copies (<use>) included: a few lines of copies of copies can mean billions."""
    named = {element.get("id"): element for element in root.iter() if element.get("id")}
    counted: dict[int, int] = {}

    def count(element: ElementTree.Element, depth: int) -> int:
        if depth > DEEPEST:
            raise InputError(f"it is nested more than {DEEPEST} levels deep")
        if id(element) not in counted:
            inner = list(element)
            if element.tag == f"{SPACE}use":
                target = named.get((element.get("href") or element.get(LINK) or "#")[1:])
                inner += [] if target is None else [target]
            counted[id(element)] = 1 + sum(count(each, depth + 1) for each in inner)
        return counted[id(element)]

    if count(root, 0) > MOST_ELEMENTS:
        raise InputError(f"it draws more than {MOST_ELEMENTS:,} shapes")


def render(svg: str, size: int) -> np.ndarray:
    """A checked SVG in pixels, its empty border cut off, filling a square.

    Args:
        svg: of a square drawing (`wrap`).
        size: height and width in pixels.

    Returns:
        (size, size, 4) uint8, red, green, blue and opacity.

    Raises:
        InputError: it cannot be rendered, or is empty; the end of a sentence.
    """
    check(svg)
    side = round(LARGER * size)
    try:
        data = resvg().svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    except InputError:
        raise
    except Exception as error:  # resvg's own, ValueError as a rule
        raise InputError(f"it cannot be rendered ({str(error)[:120]})") from None
    drawn = Image.open(io.BytesIO(data)).convert("RGBA")
    seen = drawn.getchannel("A").point([255 * (opacity > 24) for opacity in range(256)]).getbbox()
    if seen is None or min(seen[2] - seen[0], seen[3] - seen[1]) < 2:
        raise InputError("it draws nothing")
    return np.asarray(fitted(drawn.crop(seen), size))


def fitted(drawing: Image.Image, size: int) -> Image.Image:
    """An RGBA drawing scaled to touch the sides of a square, which it fills as far as its proportions allow."""
    scale = size / max(drawing.size)
    width, height = (max(1, round(scale * side)) for side in drawing.size)
    # Pillow scales premultiplied colours ("RGBa"): transparent pixels have no colour to bleed.
    scaled = drawing.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    square.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return square
