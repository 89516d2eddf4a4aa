"""`--prompts FILE`: what to draw, line by line, each with any options of its own.

    .txt             a prompt on each line; empty lines are skipped
    .csv             the first row names the options, of which one is prompt; an empty cell is not given
    .jsonl           {"prompt": "red apple", "seed": 7, "lora": ["style.safetensors:0.8"]} on each line
    -                standard input: JSON lines if the first line begins with {, else as .txt

Options are called as on the command line, with - or _. In a CSV file the values of one that can be repeated are
separated by semicolons.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_origin

from ..declared import check
from ..errors import InputError, UnknownNameError
from ..reading import parse_json, read_csv, read_lines, stream_lines
from .request import Output, Recipe, Run
from .request.machine import Machine
from .request.model import Weights
from .request.option import declared
from .request.recipe import WIDE

STDIN = "-"
PER_LINE = {"lora", "lora_blocks", "unet", "unet_option"}  # of the options that say with which weights
FORMS = ".txt", ".csv", ".jsonl"
PROMPT, NUMBER = "prompt", "num"
SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Line = tuple[str, dict[str, Any]]
"""The place, for messages, and the options that it gives; "num" too, which is no field of a recipe."""


def read_prompts(source: str) -> list[Line]:
    """Read a file of prompts.

    Args:
        source: its name, or "-" for standard input.

    Raises:
        InputError: no such file, one of another kind, nothing in it, or a line that gives no prompt, an unknown
            option, one that holds for the whole run, or a value of another type. The message names the line.
    """
    lines = list(_lines(source))
    if not lines:
        raise InputError(f"{'standard input' if source == STDIN else source} holds no prompt")
    return lines


def _lines(source: str) -> Iterator[Line]:
    form = Path(source).suffix.lower()
    if source == STDIN:
        yield from _standard_input()
    elif form not in FORMS:
        raise InputError(f"--prompts {source}: its name ends in none of {', '.join(FORMS)}, which say how it is read")
    elif form == ".csv":
        for where, row in read_csv(source):
            yield where, _options({name: text for name, text in row.items() if text.strip()}, where, from_text=True)
    else:
        yield from _texts(read_lines(source), source, form == ".jsonl")


def _standard_input() -> Iterator[Line]:
    lines = stream_lines(sys.stdin.buffer, "standard input")
    skipped = ((number, text) for number, text in lines if text.strip())
    first = next(skipped, None)
    if first is not None:
        yield from _texts(chain([first], skipped), "standard input", first[1].lstrip().startswith("{"))


def _texts(lines: Iterator[tuple[int, str]], source: str, as_json: bool) -> Iterator[Line]:
    for number, text in lines:
        where = f"{source}, line {number}"
        if text.strip():
            given = parse_json(text.strip(), where, dict[str, Any]) if as_json else {PROMPT: text.strip()}
            yield where, _options(given, where, from_text=False)


def _options(given: dict[str, Any], where: str, from_text: bool) -> dict[str, Any]:
    """The options of one line, by the names of a recipe's fields."""
    kinds = {each.name: each.kind for each in declared(Recipe)} | WIDE | {PROMPT: str, NUMBER: int}
    kept = {each.name: each.flag for each in _of_the_run()}
    made = {}
    for written, value in given.items():
        name = written.strip().removeprefix("--").replace("-", "_")
        if name in kept:
            raise InputError(f"{where}: {written} holds for the whole run; give {kept[name]} on the command line")
        if name not in kinds:
            raise InputError(f"{where}: {UnknownNameError('option', written, kinds)}")
        made[name] = _value(value, kinds[name], where, written, from_text)
    if PROMPT not in made:
        raise InputError(f"{where} gives no prompt")
    return made


def _of_the_run() -> Iterator[Any]:
    """The options that are the same for all pictures: what is loaded, where it runs, and where pictures go."""
    yield from (each for each in declared(Weights) if each.name not in PER_LINE)
    yield from declared(Machine)
    yield from (each for group in (Output, Run) for each in declared(group) if each.name != NUMBER)


def _value(value: Any, kind: Any, where: str, name: str, from_text: bool) -> Any:
    several = get_origin(kind) is tuple
    if from_text:
        value = _parsed(value.strip(), kind, where, name)
    elif several and isinstance(value, str):
        value = [value]
    check(value, kind, where, name)
    return tuple(value) if several else value


def _parsed(text: str, kind: Any, where: str, name: str) -> Any:
    kinds = {kind, *get_args(kind)}
    if get_origin(kind) is tuple:
        return [each.strip() for each in text.split(";") if each.strip()]
    if bool in kinds:
        if text.lower() not in SWITCHES:
            raise InputError(f"{where}: {name} is {text!r}; write true or false")
        return SWITCHES[text.lower()]
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                a_number = "a whole number" if number is int else "a number"
                raise InputError(f"{where}: {name} is {text!r}, not {a_number}") from None
    return text
