"""LoRAs, learned words and another autoencoder, as the command line names them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from ..lora.find import check_lora
from ..models import PICKLES, refuse_pickle
from ..plain_files import why_not
from .request import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MOST = 100  # a strength, up or down
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf)", re.IGNORECASE)


class LoraNamed(NamedTuple):
    """`FILE_OR_ID[:STRENGTH[:TEXT_STRENGTH]]`."""

    source: str
    strength: float
    text_strength: float


def parse_lora(text: str) -> LoraNamed:
    """Parse what follows --lora; see `split_strengths`. Raises `InputError` also where no file is named."""
    source, strengths = split_strengths(text, 2)
    if not source.strip() or source.endswith(":"):
        raise InputError(f"--lora {text!r} cannot be read; write FILE:STRENGTH, such as style.safetensors:0.8")
    strengths = strengths or [1.0]
    return LoraNamed(source, strengths[0], strengths[-1])


def split_strengths(text: str, most: int) -> tuple[str, list[float]]:
    r"""Split `style.safetensors:0.8` into a name and the numbers after it.

    The colon of a Windows drive, as in `C:\loras`, and those in the name of a file that is there, are part of the name.

    Args:
        text: as it was given.
        most: how many numbers there may be.

    Raises:
        InputError: a number is outside -100 to 100.
    """
    source, strengths = text, []
    while len(strengths) < most and not _exists(source):
        before, colon, last = source.rpartition(":")
        if not colon or _is_drive(before) or not NUMBER.fullmatch(last):
            break
        if not abs(float(last)) <= MOST:  # not a number is none either
            raise InputError(f"{text}: a strength of {last} cannot work; choose -{MOST} to {MOST}")
        source, strengths = before, [float(last), *strengths]
    return source, strengths


def parse_embedding(text: str) -> tuple[str, str | None]:
    r"""Parse what follows --embedding, `FILE[:TOKEN]`, as (file, token). For drives see `split_strengths`."""
    before, colon, token = text.rpartition(":")
    if not colon or _is_drive(before) or re.search(r"[\\/]", token) or _exists(text):
        before, token = text, None
    if not before.strip() or (token is not None and not token.strip()):
        raise InputError(f"--embedding {text!r} cannot be read; write FILE:WORD, such as style.safetensors:my-style")
    return before, token


def _exists(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))


def _is_drive(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z]", text))


def check_additions(recipe: Recipe) -> None:
    """Raise `InputError` for files of a recipe that are not there, or pickles. Nothing is read."""
    for text in recipe.lora:
        check_lora(parse_lora(text).source)
    for text in recipe.embedding:
        _check_file(parse_embedding(text)[0], "embedding")
    if recipe.vae is not None and not Path(recipe.vae).expanduser().is_dir():
        _check_file(recipe.vae, "autoencoder (a folder or a .safetensors file)")


def _check_file(text: str, what: str) -> None:
    path = Path(text).expanduser()
    if path.suffix.lower() in PICKLES:
        raise refuse_pickle(path)
    if reason := why_not(path):
        raise InputError(f"no such {what}: {text}" if reason == "is not there" else f"{path} {reason}")


def add(pipe: DiffusionPipeline, recipe: Recipe, tell: Callable[[str], object]) -> None:
    """Give a pipeline the autoencoder and the learned words that a recipe names.

    Args:
        pipe: changed in place.
        recipe: names them.
        tell: gets a sentence for each word that only one of two text encoders knows.

    Raises:
        InputError: a file cannot be read or does not fit.
    """
    if recipe.vae is not None:
        from .autoencoder import use_vae

        use_vae(pipe, recipe.vae)
    if recipe.embedding:
        from ..prompts.words import half_known, use_embedding

        for text in recipe.embedding:
            use_embedding(pipe, *parse_embedding(text))
        for sentence in half_known(pipe):
            tell(sentence)
