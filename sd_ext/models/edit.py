"""Change what the header of a `.safetensors` file says: title, author, tags. The tensors are copied as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import whole
from ..errors import InputError, UnknownNameError
from ..plain_files import open_file
from ..reading import HEADER_BYTES, parse_json
from .header import read_header

ENTRIES = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "date": "modelspec.date",
    "license": "modelspec.license",
    "tags": "modelspec.tags",
    "trigger": "modelspec.trigger_phrase",
    "usage": "modelspec.usage_hint",
    "merged_from": "modelspec.merged_from",
}
"""What can be changed -> the entry of the header (modelspec 1.0.1). None of them is part of any hash that LoRA files
carry: those are of the tensors, and of entries that begin with `ss_`."""


def edit_header(path: Path, changes: Mapping[str, str]) -> None:
    """Change entries of a file's header. It is replaced as a whole, or not at all; no bit of its tensors changes.

    Args:
        path: the `.safetensors` file.
        changes: names in `ENTRIES` -> text; "" removes the entry.

    Raises:
        UnknownNameError: a name is not in `ENTRIES`.
        InputError: not a complete safetensors file, or the header becomes too large.
        WriteError: it cannot be written; the file is as it was.
    """
    for name, text in changes.items():
        if name not in ENTRIES:
            raise UnknownNameError("entry of the header", name, ENTRIES)
        if not text.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in text):
            raise InputError(f"the new {name} is no UTF-8 text")
    read_header(path)  # refuses what is no complete safetensors file
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = _edited(parse_json(file.read(length), f"the header of {path}", dict[str, Any]), changes)
        if len(header) > HEADER_BYTES:
            raise InputError(f"{path}: its header would have {len(header):,} bytes; it may have {HEADER_BYTES:,}")
        with whole.file(path) as new, new.open("wb") as out:
            out.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(file, out, 2**20)


def _edited(header: dict[str, Any], changes: Mapping[str, str]) -> bytes:
    """The header's text with the changes, as long as a multiple of eight bytes, so that tensors stay aligned."""
    said = {**(header.get("__metadata__") or {}), **{ENTRIES[name]: text for name, text in changes.items()}}
    said = {key: text for key, text in sorted(said.items()) if text or key not in ENTRIES.values()}
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    made = {"__metadata__": said, **entries} if said else entries
    text = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // 8) * 8)
