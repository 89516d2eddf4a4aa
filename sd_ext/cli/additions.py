"""LoRAs, learned words and another autoencoder, as the command line names them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from ..lora.find import check_lora
from ..lora.strength import Strength
from ..models import PICKLES, refuse_pickle
from ..plain_files import why_not
from .request import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MOST = 100  # a strength, up or down
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf)", re.IGNORECASE)


class LoraNamed(NamedTuple):
    """`FILE_OR_ID[:STRENGTH[:TEXT_STRENGTH]]`, and how strongly it acts."""

    source: str
    strength: Strength


def parse_lora(text: str, blocks: str = "") -> LoraNamed:
    """Parse what follows --lora; see `split_strengths`.

    Args:
        text: as it was given.
        blocks: its block weights, as `sd_ext.lora.blocks` reads them.

    Raises:
        InputError: no file is named, a strength cannot work, or the weights cannot be read.
    """
    source, strengths = split_strengths(text, 2)
    if not source.strip() or source.endswith(":"):
        raise InputError(f"{text!r} names no LoRA; write FILE:STRENGTH, such as style.safetensors:0.8")
    return LoraNamed(source, Strength(*(strengths or [1.0]), blocks=blocks))


def parse_loras(texts: Sequence[str], blocks: Sequence[str], flag: str) -> list[LoraNamed]:
    """Parse several LoRAs with their block weights.

    Args:
        texts: see `parse_lora`.
        blocks: nothing, the same weights for all, or those of each.
        flag: the option that `blocks` were given by, for messages.

    Raises:
        InputError: as `parse_lora`, or another number of block weights.
    """
    if len(blocks) not in (0, 1, len(texts)):
        raise InputError(f"{flag} is given {len(blocks)} times for {len(texts)} LoRAs; give it once, or once for each")
    if blocks and not texts:
        raise InputError(f"{flag} needs a LoRA")
    each = blocks if len(blocks) == len(texts) else [*(blocks or [""])] * len(texts)
    return [parse_lora(text, its) for text, its in zip(texts, each, strict=True)]


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


def loras_of(recipe: Recipe) -> list[LoraNamed]:
    """The LoRAs of a recipe. Raises `InputError` if they cannot be read."""
    return parse_loras(recipe.lora, recipe.lora_blocks, "--lora-blocks")


def check_additions(recipe: Recipe) -> None:
    """Raise `InputError` for files of a recipe that are not there, or pickles. Nothing is read."""
    for named in loras_of(recipe):
        check_lora(named.source)
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
