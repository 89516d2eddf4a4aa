"""The prompts of previews, each with what is its own: size, seed, guidance, steps, what it should not show.

    prompts = ["a fox", "a fox --w 768 --h 512 --d 7 --l 7.5 --s 30 --n blurry, low quality"]

    [[prompts]]
    prompt = "a fox"
    width = 768

A line is read as kohya's `sample_prompts` are (--w width, --h height, --d seed, --l guidance, --s steps, --n negative
prompt); a file of such lines, a TOML file with tables, or kohya's TOML file may stand in place of the list.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from sd_ext.declared import check, shown
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.plain_files import read_text
from sd_ext.reading import read_toml

LETTERS = {"w": "width", "h": "height", "d": "seed", "l": "guidance", "s": "steps", "n": "negative_prompt"}
KOHYAS = {"scale": "guidance", "sample_steps": "steps"}  # in kohya's TOML files; other names are ours
NUMBERS = {"width": int, "height": int, "seed": int, "guidance": float, "steps": int}
LEAST = {"width": 8, "height": 8, "seed": 0, "guidance": 0, "steps": 1}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A prompt of the previews. What is None is as in the settings of the run.

    Args:
        prompt: the text.
        negative_prompt: what the picture should not show.
        width, height: in pixels, rounded down to a multiple of the pixels per latent.
        seed: of the noise.
        guidance: the guidance scale.
        steps: network calls.

    Raises:
        InputError: a number is out of range.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    guidance: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < 2**63:
                raise InputError(f"{name} is {value}; it must be {least} or more")

    def __str__(self) -> str:
        own = {letter: getattr(self, name) for letter, name in LETTERS.items()}
        return " ".join([self.prompt, *(f"--{letter} {value}" for letter, value in own.items() if value is not None)])


def read_prompts(value: Any, where: str) -> tuple[Prompt, ...]:
    """The prompts that a setting names.

    Args:
        value: a list of lines and tables; or a text: a file (.txt, .toml), or lines with commas between them.
        where: the place of the value, for messages.

    Raises:
        InputError: a wrong or unknown key, a number that is none or out of range, or a file that cannot be read.
    """
    if isinstance(value, str):
        if value.strip().endswith((".txt", ".toml")):
            where = value.strip()
            value = lines_of(where) if where.endswith(".txt") else tables_of(where)
        else:
            value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        value = [value]
    return tuple(prompt_of(each, f"{where}: prompt {number}") for number, each in enumerate(value, 1))


def lines_of(path: str) -> list[str]:
    """The lines of a file, without empty ones and those that begin with #, as kohya's scripts read it."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise InputError(f"{path} has no prompts; write one a line")
    return found


def tables_of(path: str) -> list[Any]:
    """The prompts of a TOML file: `prompts`, or kohya's `[prompt]` with `[[prompt.subset]]`."""
    file = read_toml(path)
    if isinstance(kohyas := file.get("prompt"), dict):
        common = {key: value for key, value in kohyas.items() if key != "subset"}
        tables = kohyas.get("subset")
        if not isinstance(tables, list) or not tables:
            raise InputError(f"{path}: there are no [[prompt.subset]] tables; give each prompt one")
        return [{KOHYAS.get(key, key): each for key, each in {**common, **table}.items()} for table in tables]
    if not isinstance(tables := file.get("prompts"), list) or not tables:
        raise InputError(f"{path}: there are no [[prompts]] tables; give each prompt one")
    return tables


def prompt_of(value: Any, where: str) -> Prompt:
    """A prompt from a line or a table; keys may be written with - or _.

    Raises:
        InputError, UnknownNameError: see `read_prompts`.
    """
    if isinstance(value, Prompt):
        return value
    if isinstance(value, str):
        return made(*of_line(value, where), where)
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {shown(value)}; it must be a text or a table")
    table, kinds = {key.replace("-", "_"): each for key, each in value.items()}, get_type_hints(Prompt)
    lost = [f"{name} = {shown(table.pop(name))}" for name in ("sample_sampler", "enum") if name in table]
    if unknown := sorted(set(table) - set(kinds)):
        raise UnknownNameError(f"setting of {where}:", unknown[0], kinds)
    for field in fields(Prompt):
        if field.name in table:
            check(table[field.name], kinds[field.name], where, field.name)
    if "prompt" not in table:
        raise InputError(f"{where}: no prompt; write its text")
    return made(table, lost, where)


def made(table: dict[str, Any], lost: Iterable[str], where: str) -> Prompt:
    """A prompt from checked values; what is not read is named."""
    for each in lost:
        log.warning(
            "%s: %s is not read; previews know width, height, seed, guidance, steps, negative prompt", where, each
        )
    try:
        return Prompt(**table)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def of_line(line: str, where: str) -> tuple[dict[str, Any], list[str]]:
    """Split a line into the values of a prompt, and the options that are none of ours.

    Raises:
        InputError: a value is no number.
    """
    text, *options = line.split(" --")
    table: dict[str, Any] = {"prompt": text.strip()}
    lost = []
    for option in options:
        letter, _, value = option.strip().partition(" ")
        name, value = LETTERS.get(letter.lower()), value.strip()
        if name is None:
            lost.append(f"--{option.strip()}")
        elif name in NUMBERS:
            try:
                table[name] = NUMBERS[name](value)
            except ValueError as error:
                wanted = "a whole number" if NUMBERS[name] is int else "a number"
                raise InputError(f"{where}: --{letter} is {shown(value)}; it must be {wanted} ({name})") from error
        else:
            table[name] = value
    return table, lost
