"""The part of the page that is about one picture."""

from __future__ import annotations

from html import escape

from sd_ext.errors import printable
from sd_ext.training.doctor.seen import Seen, View, Wording
from sd_ext.training.doctor.shots import Shots

OPEN = 2  # wordings of a caption that are shown at once; the others unfold


def card(number: int, seen: Seen, shots: Shots) -> str:
    """One picture: what the model sees, whole picture and mask beside it, texts and notes.

    Args:
        number: its place in the data, from 1.
        seen: what is known of it.
        shots: the small pictures.
    """
    marks = [("notes", bool(seen.notes)), ("twin", bool(seen.twin)), ("cut", seen.cut), ("masked", seen.masked)]
    beside = "".join([whole(seen.views[0], shots.whole), small("the mask", shots.mask)])
    facts = [
        f"{seen.original[1]} × {seen.original[0]} in the file",
        *(f"seen at {v.size[1]} × {v.size[0]}, {times(v.times)} an epoch" for v in seen.views),
        *(["mirrored half of the times"] if seen.flip else []),
        *([f"its loss counts {seen.weight:g} times"] if seen.weight != 1 else []),
        *([f"spread {seen.spread:.3f}"] if seen.spread is not None else []),
    ]
    notes = "".join(f"<li>{plain(note)}</li>" for note in [*([seen.twin] if seen.twin else []), *seen.notes])
    return f"""<article class="{" ".join(name for name, true in marks if true)}">
<div class="shots"><img class="seen" loading="lazy" alt="{plain(seen.name)}" src="{shots.seen}">{beside}</div>
<h3><span>{number:,}</span> {plain(seen.name)}</h3>
<p class="facts">{"<br>".join(map(plain, facts))}</p>
{texts(seen.wordings)}
{f"<ul>{notes}</ul>" if notes else ""}
</article>"""


def plain(text: str) -> str:
    """A text as HTML; characters that cannot be seen are written as escapes."""
    return escape(printable(text))


def times(count: int) -> str:
    """How often: "once", "3 times"."""
    return "once" if count == 1 else f"{count:,} times"


def whole(view: View, uri: str) -> str:
    """The whole picture with a frame around what is seen of it; "" where nothing is cut off."""
    if not uri:
        return ""
    (height, width), (top, left) = view.scaled, view.crop
    places = {
        "top": top / height,
        "left": left / width,
        "height": view.size[0] / height,
        "width": view.size[1] / width,
    }
    style = "; ".join(f"{name}: {100 * value:.2f}%" for name, value in places.items())
    return f'<div class="whole">{small("the whole picture", uri)}<i style="{style}"></i></div>'


def small(alt: str, uri: str) -> str:
    """A small picture; "" for none."""
    return f'<img class="small" loading="lazy" alt="{alt}" title="{alt}" src="{uri}">' if uri else ""


def texts(wordings: list[Wording]) -> str:
    """The texts of a picture, the first ones open."""
    lines = [f"<li>{said(wording, len(wordings) > 1)}</li>" for wording in wordings]
    first, others = "".join(lines[:OPEN]), "".join(lines[OPEN:])
    summary = f"<summary>{len(lines) - OPEN} more wordings</summary>"
    more = f"<details>{summary}<ol start={OPEN + 1}>{others}</ol></details>" if others else ""
    return f"<ol>{first}</ol>{more}"


def said(wording: Wording, one_of_several: bool) -> str:
    """A text, in tokens where they are known, with the end that is cut off."""
    share = f" <small>{wording.share:.0%}</small>" if one_of_several else ""
    if not wording.text:
        return f"<em>no text</em>{share}"
    if not wording.pieces:
        return plain(wording.text) + share
    pieces = wording.pieces
    tokens = "".join(f"<b>{plain(token)}</b>" for token in pieces.tokens[: pieces.kept])
    lost = "".join(f"<b>{plain(token)}</b>" for token in pieces.cut)
    cut = f'<span class="lost" title="cut off after {pieces.kept} tokens">{lost}</span>' if lost else ""
    return f"{tokens}{cut}{share} <small>{len(pieces.tokens)} tokens</small>"
