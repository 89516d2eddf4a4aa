"""What a LoRA made of several keeps of theirs: the entries of their headers, and the words bundled with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..reading import parse_json
from .lora import Lora
from .strength import AnyStrength, Strength

MERGED = "sd_ext.merged"  # JSON: title and strength of each LoRA that one was made of
TAGS = "ss_tag_frequency"  # kohya's: folder of pictures -> tag -> how often it was there
TITLES = "modelspec.title", "ss_output_name"
LISTS = (
    "modelspec.trigger_phrase", "modelspec.tags", "modelspec.author", "modelspec.license", "modelspec.description",
    "modelspec.usage_hint", "ss_training_comment",
)  # fmt: skip
LONGEST = 8  # entries in a message

log = logging.getLogger(__name__)


def merged_header(loras: Sequence[tuple[Lora, AnyStrength]]) -> dict[str, str]:
    """The header of a LoRA made of several.

    Titles are joined, tags added up, authors and the like listed. What is the same in all stays; other entries tell of
    one training alone, and are left out and named in a warning.

    Args:
        loras: the LoRAs with their strengths.
    """
    headers = [lora.metadata for lora, _ in loras]
    if len(headers) == 1:
        return dict(headers[0])
    names = {key for header in headers for key in header}
    made, lost = {}, []
    for key in sorted(names - {MERGED}):
        values = list(dict.fromkeys(header[key] for header in headers if key in header))
        if key == TAGS:
            made[key] = _added(values)
        elif key in TITLES:
            made[key] = " + ".join(values)
        elif key in LISTS:
            made[key] = ", ".join(values)
        elif len(values) == 1:
            made[key] = values[0]
        else:
            lost.append(key)
    if lost:
        more = f" and {len(lost) - LONGEST} more" if len(lost) > LONGEST else ""
        log.warning("the headers differ in %s%s, which the merged one has not", ", ".join(lost[:LONGEST]), more)
    parts = [{"title": _title(lora), **_said(strength)} for lora, strength in loras]
    return {**made, MERGED: json.dumps(parts, ensure_ascii=False)} if any(headers) else made


def _title(lora: Lora) -> str:
    return next((lora.metadata[key] for key in TITLES if lora.metadata.get(key)), "")


def _said(strength: AnyStrength) -> dict[str, Any]:
    """A strength as entries of a header."""
    if not isinstance(strength, Strength):
        return {"strength": strength}
    text = {} if strength.text is None else {"text": strength.text}
    return {"strength": strength.unet, **text, **({"blocks": strength.blocks} if strength.blocks else {})}


def _added(values: Sequence[str]) -> str:
    """Tag frequencies added up. Those that are not readable are left out, with a warning."""
    total: dict[str, dict[str, Any]] = {}
    for value in values:
        try:
            folders = parse_json(value, TAGS, dict[str, dict[str, int]])
        except InputError as error:
            log.warning("%s; it is left out of the merged header", error)
            continue
        for folder, tags in folders.items():
            known = total.setdefault(folder, {})
            for tag, count in tags.items():
                known[tag] = known.get(tag, 0) + count
    return json.dumps(total, ensure_ascii=False)


def merged_words(loras: Sequence[tuple[Lora, AnyStrength]]) -> dict[str, Tensor]:
    """The bundled words of several LoRAs. A word that two have with different vectors gets a number, which is said."""
    made: dict[str, Tensor] = {}
    for lora, _ in loras:
        names: dict[str, str] = {}
        for key in lora.bundled:
            word = key.split(".")[1] if key.count(".") > 1 else key
            names.setdefault(word, word)
        for word in names:
            own = {key: tensor for key, tensor in lora.bundled.items() if key.split(".")[1:2] == [word] or key == word}
            number = 1
            while any(_other(made, _renamed(key, word, number), tensor) for key, tensor in own.items()):
                number += 1
            if number > 1:
                log.warning("two of the LoRAs bring the word %s; the second is called %s-%d", word, word, number)
            made |= {_renamed(key, word, number): tensor for key, tensor in own.items()}
    return made


def _renamed(key: str, word: str, number: int) -> str:
    return key if number == 1 else key.replace(f".{word}.", f".{word}-{number}.", 1)


def _other(made: dict[str, Tensor], key: str, tensor: Tensor) -> bool:
    return key in made and not (made[key].shape == tensor.shape and torch.equal(made[key], tensor))


def common_dtype(loras: Sequence[Lora]) -> torch.dtype | None:
    """The smallest type that holds what the tensors of some LoRAs hold: float16 if all are; None without tensors."""
    types = {lora.dtype for lora in loras if lora.dtype is not None}
    types |= {t.dtype for lora in loras if lora.dtype is None for adapter in lora for t in adapter.tensors.values()}
    found: torch.dtype | None = None
    for each in sorted(types, key=str):
        found = each if found is None else torch.promote_types(found, each)
    return found
