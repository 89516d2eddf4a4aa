"""Check a folder before it is published: its list of files, private text in them, and whether they load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..errors import InputError
from ..plain_files import MIB, read_text
from ..reading import open_tensors
from .finished import DIFFUSERS_FILE, FinishedRun
from .leaks import STEERS, Secrets, find_leaks

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CONFIG_BYTES = 64 * MIB  # tables of a sampler can be long


class MailFoundError(InputError):
    """A mail address would be published. It may be meant, so this is asked about."""


SCANNED = re.compile(r"(.*/)?((.*_)?config|model_index|words|added_tokens|special_tokens_map|.*\.index)\.json")
"""JSON that people and programs write. A tokenizer's vocabulary holds every kind of text, and is nobody's secret."""


def verify(staged: Path, expected: Iterable[str], secrets: Secrets) -> None:
    """Raise `InputError` unless the folder holds exactly the expected files, none contains private text, and all load.

    Args:
        staged: the folder that would be published.
        expected: the paths within it.
        secrets: what must not appear in any text.
    """
    names = check_names(staged, expected)
    for name in sorted(names):
        if name.endswith(".md"):
            lines = read_text(staged / name).splitlines()
            _check_texts(name, enumerate(lines, 1), "line", secrets)
            # Once more without Markdown's escaping backslashes, which would hide a token as `hf\_...`.
            _check_texts(name, enumerate((re.sub(r"\\(\W|_)", r"\1", line) for line in lines), 1), "line", secrets)
        elif SCANNED.fullmatch(name):
            _check_texts(name, enumerate(read_text(staged / name, CONFIG_BYTES).splitlines(), 1), "line", secrets)
        elif name.endswith(".safetensors"):
            _check_weights(staged, name, secrets)
    _check_card(staged, names)


def check_names(staged: Path, expected: Iterable[str]) -> set[str]:
    """The names of the files in a folder. Raises `InputError` unless they are exactly the expected ones."""
    names = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if not path.is_dir()}
    if strange := names ^ set(expected):
        raise InputError(f"what would be published is not what should be: {', '.join(sorted(strange))}")
    return names


def check_run(staged: Path, run: FinishedRun) -> None:
    """Raise `InputError` unless the LoRA files of a run agree and load, and new words are as the run says."""
    for name in run.embeddings:
        _check_embeddings(staged / name, run.tokens)
    _check_loras(staged, run)


def _check_texts(name: str, texts: Iterable[tuple[Any, str]], place: str, secrets: Secrets) -> None:
    """Raise `InputError` for a text that must not be published.

    Args:
        name: the file, for the message.
        texts: (where in the file, text) pairs.
        place: what "where" counts: "line", "key" or "header entry".
        secrets: what must not appear.
    """
    for where, text in texts:
        if STEERS.search(text.replace("\t", "")):
            raise InputError(
                f"{name}, {place} {where} holds characters that steer a screen; take them out of the source"
            )
        if kinds := find_leaks(text, secrets):
            wrong = f"{name}, {place} {where}: {' and '.join(kinds)} must not be published"
            if all(kind.startswith("a mail address") for kind in kinds):
                raise MailFoundError(
                    f"{wrong} without being asked about; give --allow-mail if it may (nothing was sent)"
                )
            raise InputError(
                f"{wrong}; take it out of {'training.json' if name.endswith('.md') else 'the file'} and publish again "
                "(nothing was sent)"
            )


def _check_weights(staged: Path, name: str, secrets: Secrets) -> None:
    """Raise `InputError` if a file is no safetensors file, has private text in its header, or holds NaN or infinity."""
    import torch

    try:
        with open_tensors(staged / name) as file:
            header = [*(file.metadata() or {}).items(), *((key, "") for key in file.keys())]  # noqa: SIM118
            broken = [key for key in file.keys() if not torch.isfinite(file.get_tensor(key)).all()]  # noqa: SIM118
    except InputError as error:
        raise InputError(f"{name} is not a safetensors file that loads: {error}") from error
    # Keys are checked first, since a later message may name one.
    _check_texts(name, enumerate((key for key, _ in header), 1), "key", secrets)
    _check_texts(name, header, "header entry", secrets)
    if broken:
        raise InputError(f"{name}: {broken[0]} is not finite; a picture drawn with it would be black")


def _check_embeddings(path: Path, tokens: Sequence[str]) -> None:
    """Raise `InputError` unless the file holds exactly the new tokens, each (dim,) or, if several, (vectors, dim)."""
    with open_tensors(path) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    if set(shapes) != set(tokens):
        raise InputError(
            f"{path.name} holds {', '.join(shapes) or 'nothing'}, but the new words are {', '.join(tokens)}"
        )
    if wrong := [key for key, shape in shapes.items() if len(shape) not in (1, 2)]:
        raise InputError(f"{path.name}: {wrong[0]} is {shapes[wrong[0]]}, not (vectors, dim)")


def _check_card(staged: Path, names: set[str]) -> None:
    """Raise `InputError` unless the card can be read back, and every file that it shows or links to exists."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard.load(staged / "README.md")
    except ValueError as error:
        raise InputError(f"the card does not read back: {error}") from error
    _check_metadata(card)
    shown = [entry["output"]["url"] for entry in card.data.get("widget") or []]
    linked = [unquote(link) for link in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", card.text) if "://" not in link]
    if missing := sorted({*shown, *linked} - names):
        raise InputError(f"the card shows files that are not there: {', '.join(missing)}")


def _check_metadata(card: ModelCard) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    data = card.data
    if data.get("base_model") is not None:
        try:
            validate_repo_id(data.get("base_model"))
        except HFValidationError as error:
            raise InputError(f"the card's base_model: {error}") from None
    for key in ("license", "license_name", "license_link", "instance_prompt"):
        if not isinstance(data.get(key, ""), (str, type(None))):
            raise InputError(f"the card's {key} reads back as {type(data.get(key)).__name__}, not as text")


def _check_loras(staged: Path, run: FinishedRun) -> None:
    """Raise `InputError` unless both LoRA files load, and both make the same change."""
    from ..lora import read_lora
    from .agreement import check_agreement, check_diffusers

    kohya = staged / run.kohya_file
    if run.in_diffusers:
        check_diffusers(staged / DIFFUSERS_FILE, run.family)
        check_agreement(staged / DIFFUSERS_FILE, kohya)
    elif all(adapter.rules.in_diffusers for adapter in read_lora(kohya)):
        raise InputError(f"there is no {DIFFUSERS_FILE}; a LoRA is published in both formats")
