"""What is worth saying before a picture is drawn, of a model that tells what it answers to (`words.json`)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import printable
from ..models import is_embedded
from ..models.near import near
from ..models.words import Words
from .drawing import default_size
from .prompting import spoken
from .request import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FAR_GUIDANCE = 2.0  # times the usual, or a part of it
FAR_SIDE = 4 / 3  # times the side it was trained on, or a part of it
MOST = 6  # unknown words that get a line of their own
TRIED = 30  # unknown words that near ones are looked for
LARGE_PICTURES = "highres"  # the U-Net preset that is made for sizes above the trained one


def doubts(words: Words, pipe: DiffusionPipeline, recipes: Sequence[Recipe]) -> list[str]:
    """What the model may not draw well, each said once.

    Args:
        words: what the model tells.
        pipe: the model.
        recipes: what is to be drawn, prepared; they differ in prompt and seed only.
    """
    first = recipes[0]
    command = "sd-ext words" + ("" if is_embedded(first.model) else f" --model {shlex.quote(first.model)}")
    learned = _learned(pipe)
    texts = dict.fromkeys(without(text, learned) for recipe in recipes for text in spoken(recipe))
    said = unknown_words(words, texts, command)
    said += far_guidance(words, first.guidance) if first.guidance is not None else []
    said += far_size(first.sides, default_size(pipe), first.unet)
    return [printable(line) for line in said]


def _learned(pipe: DiffusionPipeline) -> list[str]:
    """The words whose vectors came from files, the longest first."""
    from ..prompts.encoders import find_encoders
    from ..prompts.words import words_of

    return sorted({word for encoder in find_encoders(pipe) for word in words_of(encoder)}, key=len, reverse=True)


def without(text: str, learned: Iterable[str]) -> str:
    """A text without words that are known from elsewhere."""
    for word in learned:
        text = text.replace(word, " ")
    return text


def unknown_words(words: Words, texts: Iterable[str], list_command: str) -> list[str]:
    """A line for each word that the model does not know and that others are near, and one for the rest.

    Args:
        words: what the model knows; if no things, nothing is said.
        texts: prompts.
        list_command: the command that lists what it knows.
    """
    if not words.every_thing:
        return []
    unknown = dict.fromkeys(p.text for text in texts for p in words.pieces(text) if not p.meanings)
    told, rest = [], []
    for number, word in enumerate(unknown):
        close = near(words, word) if len(told) < MOST and number < TRIED else []
        told += [f"I know no {word!r}; near: {', '.join(close)}."] if close else []
        rest += [] if close else [repr(word)]
    if rest:
        more = f", and {len(rest) - MOST} words more" if len(rest) > MOST else ""
        told.append(f"I know no {', '.join(rest[:MOST])}{more}; `{list_command}` lists what I know.")
    return told


def far_guidance(words: Words, guidance: float) -> list[str]:
    """A line if the guidance is far from the usual."""
    usual = words.guidance
    if usual is None or usual / FAR_GUIDANCE <= guidance <= usual * FAR_GUIDANCE:
        return []
    risk = "colours and shapes may fall apart" if guidance > usual else "pictures may not show what is asked for"
    return [f"Guidance {guidance:g} is far from this model's usual {usual:g}: {risk}."]


def far_size(wanted: tuple[int, int], trained: tuple[int, int], unet: str | None) -> list[str]:
    """A line if a side is far from the one that the network was trained on.

    Args:
        wanted, trained: (width, height) in pixels.
        unet: the U-Net preset that is applied, if any.
    """
    shares = [wanted[side] / trained[side] for side in (0, 1)]
    large = max(shares) > FAR_SIDE and unet != LARGE_PICTURES
    if not large and min(shares) >= 1 / FAR_SIDE:
        return []
    size, own = ("x".join(map(str, each)) for each in (wanted, trained))
    help_ = f" (--unet {LARGE_PICTURES} helps)" if large else ""
    return [f"{size} is far from the {own} this model was trained on: things may double or fall apart{help_}."]
