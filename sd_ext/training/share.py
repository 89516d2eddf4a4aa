"""Small things the training scripts share: loading models by folder, naming pictures left out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from sd_ext.errors import ModelError
from sd_ext.training.data import Pass, Pictures, random
from sd_ext.training.model_files import find_part


def from_folder(cls: Any, folder: str, part: str) -> Any:
    """`cls.from_pretrained` on a model folder, or on the `part` of a pipeline folder or finished run.

    Raises:
        ModelError: nothing there that loads.
    """
    found = find_part(folder, part)
    options: dict[str, Any] = {} if "okenizer" in cls.__name__ else {"use_safetensors": True}
    try:
        return cls.from_pretrained(found, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{found} does not load as {cls.__name__}: {error}") from error


def report_broken(pictures: Pictures) -> None:
    """Say which pictures were left out, and why."""
    if pictures.skipped:
        console = Console(stderr=True)
        lines = [f"{len(pictures.skipped)} pictures are left out:", *pictures.skipped]
        console.print("\n  ".join(lines), highlight=False, markup=False)


def fingerprint(pictures: Pictures, said: Sequence[Any], masks: bool = False) -> str:
    """What identifies samples: pictures, sizes, weights, what is said about each, and masks where they count."""
    whole = hashlib.sha256()
    for sample, words in zip(pictures.samples, said, strict=True):
        whole.update(repr((sample.digest, sample.size, sample.weight, words)).encode())
        if masks and sample.item.mask:
            whole.update(hashlib.sha256(sample.item.mask()).digest())
    return whole.hexdigest()


def read_pixels(pictures: Pictures, each: Pass, seed: int, flip: bool) -> Tensor:
    """The pictures of a pass (b, 3, height, width), half of them mirrored where `flip` says so."""
    mirrored = [flip and float(torch.rand((), generator=random(seed, 4, each.step, p))) < 0.5 for p in each.positions]
    return torch.stack([pictures.pixels(s, m) for s, m in zip(each.samples, mirrored, strict=True)])
