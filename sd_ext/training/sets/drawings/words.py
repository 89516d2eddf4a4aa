"""Writes `words.json`, from which `sd-ext` tells what a model trained on drawings knows: see `sd_ext.models.words`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sd_ext.models.words import FILE
from sd_ext.training.sets.drawings.book import read_book
from sd_ext.training.sets.drawings.colours import NAMES
from sd_ext.training.sets.drawings.grammar import Grammar, read_grammar
from sd_ext.training.sets.drawings.held_out import STYLE

POSITIONS = ("beside", "above", "apart")
FORMS = ("one", "several", "alone", *POSITIONS)
SLOT = re.compile(r"\{[a-z ]+\}")


def write_words(new: Path, drawings: Path, guidance: float) -> None:
    """Write `words.json` into a pipeline's folder that is being made.

    Args:
        new: the folder.
        drawings: of the set that the model was trained on, or the set's own folder.
        guidance: the guidance scale at which the model draws best; `sd-ext generate` takes it if none is given.

    Raises:
        InputError: the folder lists no drawings, or `grammar.toml` is damaged.
    """
    rows = [f"{json.dumps(key)}: {_laid_out(value)}" for key, value in words(drawings, guidance).items()]
    (new / FILE).write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def words(drawings: Path, guidance: float) -> dict[str, Any]:
    """The content of `words.json`. Arguments and errors as for `write_words`."""
    grammar, trained = read_grammar(), [d for d in read_book(drawings).drawings if d.split != STYLE]
    things: dict[str, dict[str, Any]] = {}
    for drawing in trained:
        things.setdefault(drawing.kind, {}).setdefault(drawing.concept, drawing)
    return {
        "guidance": guidance,
        "things": {
            kind: [
                {"names": d.names, "plurals": [grammar.speech.plural(n) for n in d.names], "tags": d.tags}
                for d in drawn.values()
            ]
            for kind, drawn in things.items()
        },
        "styles": _styles(grammar, {drawing.style for drawing in trained}),
        "colours": {name: [name, *grammar.colour_said.get(name, [])] for name in NAMES},
        "numbers": {number: _once(ways) for number, ways in grammar.number_said.items()},
        "sizes": grammar.size_said,
        "positions": _once(between for form in _all(grammar, POSITIONS) if (between := _between(form))),
        "grounds": _grounds(grammar),
        "forms": _once(_plain(_all(grammar, FORMS))),
    }


def _styles(grammar: Grammar, drawn: set[str]) -> dict[str, list[str]]:
    """Style -> what is said for it; styles that are not spoken of are left out."""
    made = {}
    for style in grammar.style_behind:
        if style in drawn or style not in grammar.styles:  # those that are made of any drawing
            ways = [grammar.style_before.get(style, []), grammar.style_behind[style]]
            made[style] = _once([*ways[0], *ways[1], *_plain(grammar.style_forms.get(style, []))])
    return {style: ways for style, ways in made.items() if ways}


def _grounds(grammar: Grammar) -> dict[str, list[str]]:
    said = {**grammar.said_ground, **{name: entry["said"] for name, entry in grammar.scenery.items()}}
    return {
        name: [way.replace("{a ground}", "a {colour}").replace("{ground}", "{colour}") for way in ways]
        for name, ways in said.items()
    }


def _all(grammar: Grammar, tables: Iterable[str]) -> list[str]:
    return [form for table in tables for form in getattr(grammar, table)]


def _plain(forms: Iterable[str]) -> list[str]:
    """What forms say beside their slots: "a photo of {a thing}" says "a photo of"."""
    return [said for form in forms for piece in SLOT.split(form) if (said := piece.strip(" ,"))]


def _between(form: str) -> str:
    """What stands between the two things of a form, if it says where they are."""
    inner = SLOT.split(form)[1].strip() if len(SLOT.findall(form)) == 2 else ""
    return "" if "," in inner or inner in ("and", "with") else inner


def _once(several: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(several))


def _laid_out(value: Any) -> str:
    """JSON with a line for each entry, and for each thing."""
    if isinstance(value, dict):
        rows = ",\n".join(f" {json.dumps(key)}: {_laid_out(inner)}" for key, inner in value.items())
        return "{\n" + rows + "\n}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join("  " + json.dumps(each) for each in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False)
