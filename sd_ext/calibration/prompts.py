"""Prompts for those who have none: the model's own words where it tells them, or plain ones of this package."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from ..models.words import Words, read_words
from ..plain_files import read_text

SHIPPED = Path(__file__).parent / "prompts.txt"


def lines_of(path: str | Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines and those that begin with # are left out.

    Raises:
        InputError: no such file, or not text.
    """
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def of_words(words: Words) -> list[str]:
    """A prompt for each thing that a model knows: by its name alone, in a colour, or in a style."""
    colours = cycle([ways[0] for ways in words.colours.values() if ways] or [""])
    styles = cycle([ways[0] for ways in words.styles.values() if ways] or [""])
    made = []
    for number, thing in enumerate(words.every_thing):
        before = ("", next(colours), next(styles))[number % 3]
        made.append(f"{before} {thing.names[0]}".strip())
    return made


def of_folder(folder: Path) -> list[str]:
    """The prompts for a pipeline folder, or any place: its own words', or else the shipped ones."""
    words = read_words(folder) if folder.is_dir() else None
    return (of_words(words) if words else []) or lines_of(SHIPPED)


def of_pipeline(pipe: Any) -> list[str]:
    """The prompts for a pipeline: of the folder that it was loaded from, see `of_folder`."""
    return of_folder(Path(str(getattr(pipe, "name_or_path", "") or "nowhere")))


def repeated(dealt: Sequence[str]) -> str:
    """What to say of prompts that were dealt to pairs, where several pairs have the same; empty where none have."""
    different = len(set(dealt))
    if different == len(dealt):
        return ""
    count = "1 prompt" if different == 1 else f"{different} prompts"
    return f"{count} for {len(dealt)} pairs: the prompts that are fitted to are also judged on, with other noise"
