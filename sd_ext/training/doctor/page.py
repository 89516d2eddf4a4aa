"""The page of `sd-ext train look`: one HTML file that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sd_ext.training.doctor.cards import card, plain
from sd_ext.training.doctor.seen import Seen
from sd_ext.training.doctor.shots import Shots

AT_ONCE = 60  # pictures between two turns of the page

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1f24, #e6e8eb); --soft: light-dark(#667, #9aa3ad);
  --line: light-dark(#e2e5ea, #30363d); --paper: light-dark(#fff, #14171a); --tile: light-dark(#f5f6f8, #1d2125);
  --token: light-dark(#e8eefc, #24324d); --lost: light-dark(#fbdcdc, #5a2626); --warn: light-dark(#8a5a00, #e3b341); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 2em auto; padding: 0 1.2em;
  color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5em; margin-bottom: .2em; overflow-wrap: anywhere; } h2 { margin-top: 2em; font-size: 1.15em; }
.soft, small, .facts { color: var(--soft); } small { font-size: .8em; white-space: nowrap; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 1.2em 0; }
.tiles div { background: var(--tile); border-radius: 8px; padding: 8px 16px; }
.tiles b { display: block; font-size: 1.4em; font-variant-numeric: tabular-nums; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 10px; align-items: center;
  background: var(--paper); padding: 8px 0; border-bottom: 1px solid var(--line); margin-bottom: 14px; }
nav input[type=search] { flex: 1 1 12em; } nav input, nav select, nav button { font: inherit; padding: 2px 8px; }
#cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 16px; align-items: start; }
article { border: 1px solid var(--line); border-radius: 10px; padding: 12px; overflow-wrap: anywhere; min-width: 0; }
.shots { display: flex; gap: 8px; align-items: flex-start; }
.shots .seen { width: 62%; max-height: 256px; object-fit: contain; object-position: left; border-radius: 4px; }
.shots .small { display: block; max-width: 96px; border-radius: 3px; }
.whole { position: relative; } .whole i { position: absolute; box-sizing: border-box; border: 2px solid #e8442e; }
.mirror .seen { transform: scaleX(-1); }
h3 { font-size: .95em; margin: .6em 0 .2em; } h3 span { color: var(--soft); font-weight: 400; }
.facts { font-size: .85em; margin: 0 0 .5em; }
article ol, article ul { margin: .3em 0; padding-left: 1.4em; font-size: .88em; } article ul { color: var(--warn); }
b { font-weight: 400; background: var(--token); border-radius: 3px; padding: 0 2px; margin-right: 2px; }
.tiles b { background: none; } .lost b { background: var(--lost); text-decoration: line-through; }
details.part { border-top: 1px solid var(--line); padding: 6px 0; } .part h2 { display: inline; font-size: 1em; }
.part summary { color: var(--soft); } .part h2 { color: var(--ink); } .part[open] { padding-bottom: 14px; }
.lost::before { content: "✂ "; } details { font-size: .95em; } summary { cursor: pointer; }
table { border-collapse: collapse; } td, th { text-align: left; padding: 3px 14px 3px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } td.n { text-align: right; }
"""

# A template is read but not laid out, and its pictures are not decoded: only those of one turn of the page are.
SCRIPT = """
const at = name => document.getElementById(name), all = [...at('every').content.children];
const texts = all.map(a => a.textContent.toLowerCase());
let page = 0;
function show() {
  const words = at('find').value.toLowerCase(), kind = at('kind').value;
  const found = all.filter((a, n) => (!kind || a.classList.contains(kind)) && texts[n].includes(words));
  const pages = Math.max(1, Math.ceil(found.length / SIZE));
  page = Math.min(Math.max(page, 0), pages - 1);
  at('cards').replaceChildren(...found.slice(page * SIZE, (page + 1) * SIZE));
  at('where').textContent = `${found.length} pictures, page ${page + 1} of ${pages}`;
  at('back').disabled = page == 0; at('on').disabled = page == pages - 1;
}
at('find').oninput = at('kind').onchange = () => { page = 0; show(); };
at('back').onclick = () => { page--; show(); };
at('on').onclick = () => { page++; show(); };
if (at('mirror')) at('mirror').onchange = e => at('cards').classList.toggle('mirror', e.target.checked);
show();
"""


@dataclass(frozen=True)
class Page:
    """The contents of the page.

    Args:
        title: the name of the data.
        totals: one line about the data.
        numbers: name -> number, shown large.
        sizes: size -> samples an epoch.
        rules: sentences that are true of all pictures.
        remarks: a line for each kind of note.
        twins: a line for each near-duplicate.
        cards: the pictures that are shown.
        first: place of the first of them in the data, from 1.
        of: how many pictures there are.
        left_out: (name, reason) of pictures that are left out.
        unused: file -> why it is not used.
        flip: whether pictures are mirrored.
    """

    title: str
    totals: str
    numbers: Mapping[str, str]
    sizes: Mapping[str, int]
    rules: Sequence[str]
    remarks: Sequence[str]
    twins: Sequence[str]
    cards: Sequence[tuple[Seen, Shots]]
    first: int
    of: int
    left_out: Sequence[tuple[str, str]]
    unused: Mapping[str, str]
    flip: bool


def html(page: Page) -> str:
    """The page as text."""
    tiles = "".join(f"<div><b>{value}</b>{plain(name)}</div>" for name, value in page.numbers.items())
    cards = "\n".join(card(page.first + i, *each) for i, each in enumerate(page.cards))
    parts = [
        table("Sizes", ("size", "samples an epoch"), [(size, f"{n:,}") for size, n in page.sizes.items()]),
        listing("Notes", page.remarks),
        listing("Near-duplicates", page.twins),
        table("Left out", ("picture", "why"), page.left_out),
        table("Files not used", ("file", "why"), list(page.unused.items())),
    ]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{plain(page.title)}: what is trained on</title><style>{STYLE}</style></head><body>
<h1>{plain(page.title)}</h1>
<p class="soft">{plain(page.totals)}</p>
<div class="tiles">{tiles}</div>
<p>{plain(" ".join(page.rules))}</p>
{"".join(parts)}
<h2>Pictures, as the model sees them</h2>
<p class="soft">{plain(shown(page))} The frame in a small picture is what is seen of it.</p>
<nav><input id="find" type="search" placeholder="find in names, texts and notes"><select id="kind">
<option value="">all</option><option value="notes">with notes</option><option value="twin">near-duplicates</option>
<option value="cut">captions cut off</option><option value="masked">with masks</option></select>
{MIRROR if page.flip else ""}
<button id="back">back</button><span id="where" class="soft"></span><button id="on">on</button></nav>
<div id="cards"></div>
<template id="every">
{cards}
</template>
<script>{SCRIPT.replace("SIZE", str(AT_ONCE))}</script>
</body></html>
"""


MIRROR = '<label><input id="mirror" type="checkbox"> mirrored</label>'


def shown(page: Page) -> str:
    """Which pictures the page shows."""
    if len(page.cards) == page.of:
        return f"All {page.of:,} are shown."
    last = page.first + len(page.cards) - 1
    which = f"{page.first:,} to {last:,}" if page.cards else "none"
    return f"Shown are {which} of {page.of:,}; shown and first choose others."


def table(title: str, heads: tuple[str, str], rows: Sequence[tuple[str, str]], open_rows: int = 10) -> str:
    """A table under a heading, which must be unfolded if it is long; "" without rows."""
    if not rows:
        return ""
    body = "".join(f"<tr><td>{plain(a)}</td><td>{plain(b)}</td></tr>" for a, b in rows)
    head = "".join(f"<th>{plain(each)}</th>" for each in heads)
    return folded(title, len(rows), f"<table><tr>{head}</tr>{body}</table>", open_rows)


def listing(title: str, lines: Sequence[str], open_rows: int = 10) -> str:
    """A list under a heading, which must be unfolded if it is long; "" without lines."""
    if not lines:
        return ""
    return folded(title, len(lines), f"<ul>{''.join(f'<li>{plain(line)}</li>' for line in lines)}</ul>", open_rows)


def folded(title: str, count: int, content: str, open_rows: int) -> str:
    """Content under a heading, shown at once if it has few rows."""
    state = " open" if count <= open_rows else ""
    summary = f"<summary><h2>{plain(title)}</h2> {count:,}</summary>"
    return f'<details class="part"{state}>{summary}{content}</details>\n'
