"""Digests of a model's weight files, quick the second time.

Reading a checkpoint of several gigabytes takes seconds, so the digest of a large file is kept in the user's cache
folder, beside the size and time of change that it holds for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from .. import whole
from ..errors import InputError
from ..reading import read_json
from .model import Model

LARGE = 64 * 2**20  # bytes from which on a digest is kept
MOST = 1000  # digests that are kept
DIGITS = 16  # hexadecimal digits of a digest that is shown


def weight_digests(model: Model, parts: Mapping[str, Path] | None = None) -> dict[str, str]:
    """The first 16 digits of a SHA-256 over the weight files of each part that has some.

    Args:
        model: the model.
        parts: further files by name, such as LoRAs.

    Raises:
        ModelError: a weight file is missing or damaged.
        OSError: a file cannot be read.
    """
    found = {part: _of_part(model, part) for part in model.parts if _has_weights(part)}
    found |= {name: quick_digest(path)[:DIGITS] for name, path in (parts or {}).items()}
    return {name: digest for name, digest in found.items() if digest}


def _has_weights(part: str) -> bool:
    return not part.startswith(("tokenizer", "scheduler", "feature_extractor", "safety_checker"))


def _of_part(model: Model, part: str) -> str:
    files = sorted({stored.file for stored in model.tensors(part).values()})
    together = hashlib.sha256("".join(quick_digest(file) for file in files).encode())
    return together.hexdigest()[:DIGITS] if files else ""


def cache_folder() -> Path:
    """Where this package keeps what can be made anew: `sd_ext` in the system's folder for caches."""
    given = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return Path(given or Path.home() / ".cache") / "sd_ext"


def quick_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; taken from the cache if the file has its size and time of change still."""
    from ..checked import file_digest  # imports torch

    stat = path.stat()
    if stat.st_size < LARGE:
        return file_digest(path)
    name, state = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
    store = cache_folder() / "digests.json"
    kept = _kept(store)
    if kept.get(name, [])[:2] == state:
        return str(kept[name][2])
    digest = file_digest(path)
    with contextlib.suppress(InputError):  # a folder that cannot be written to only costs time
        recent = list({**kept, name: [*state, digest]}.items())[-MOST:]
        whole.write_json(store, dict(recent))
    return digest


def _kept(store: Path) -> dict[str, list[int | str]]:
    try:
        return read_json(store, dict[str, tuple[int, int, str]])
    except InputError:  # not there yet, or damaged
        return {}
