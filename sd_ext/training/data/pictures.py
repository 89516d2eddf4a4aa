"""Captioned pictures from a folder, and which of them a step sees.

The layout is the `imagefolder` convention: pictures and a `metadata.jsonl` with one JSON object a line, `file_name` and
`text`, here also an optional `split`. Pictures are float tensors (3, height, width) in [-1, 1].
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sd_ext.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
IN_MEMORY = 4 * 2**30  # sets up to this many bytes of pixels are decoded once


def random(seed: int, *where: int, device: str = "cpu") -> torch.Generator:
    """A generator that depends on (seed, *where) only: the same draws whether a run was interrupted or not."""
    state = np.random.SeedSequence([seed, *where]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> 1))


def load_picture(path: Path, resolution: int) -> np.ndarray:
    """The middle of a picture, its shorter side scaled to `resolution`: (resolution, resolution, 3) uint8."""
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("RGBA", "LA", "P"):
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture.convert("RGBA"))
            picture = white
        size = (resolution, resolution)
        return np.asarray(ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS))


def read_metadata(folder: Path, split: str) -> list[tuple[Path, str]]:
    """(path, caption) of the pictures of a split, or of "all"; without metadata captions are empty."""
    if not folder.is_dir():
        raise InputError(f"no folder of pictures at {folder}")
    metadata = folder / "metadata.jsonl"
    if not metadata.exists():
        pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not pictures:
            raise InputError(f"{folder} holds no pictures and no metadata.jsonl")
        return [(p, "") for p in pictures]
    entries = []
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], str(entry.get("text", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{metadata}, line {number}: not a JSON object with a file_name: {line[:60]!r}") from error
        if split in ("all", entry.get("split", "train")):
            entries.append((folder / name, text))
    if not entries:
        raise InputError(f"{metadata} lists no pictures with split {split!r}")
    return entries


@dataclass
class Pictures(Dataset):
    """The readable pictures of a folder, in the order of its metadata.

    Args:
        folder: an imagefolder.
        resolution: height and width in pixels.
        split: which pictures; "all" for every one.

    Attributes:
        paths, captions: of the pictures that could be read.
        broken: one line for each that could not: its name and why.

    Raises:
        InputError: no such folder, a damaged metadata.jsonl, or no readable picture at all.
    """

    folder: str | os.PathLike[str]
    resolution: int
    split: str = "all"
    paths: list[Path] = field(init=False)
    captions: list[str] = field(init=False)
    broken: list[str] = field(init=False, default_factory=list)
    _pixels: Tensor | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        entries = read_metadata(Path(self.folder), self.split)
        keep = len(entries) * self.resolution**2 * 3 <= IN_MEMORY
        with ThreadPoolExecutor() as pool:  # decoding every picture once is how broken ones are found before step 1
            results = list(pool.map(lambda entry: self._try(entry[0], keep), entries))
        good = [i for i, (error, _) in enumerate(results) if not error]
        self.broken = [f"{entries[i][0].name}: {error}" for i, (error, _) in enumerate(results) if error]
        if not good:
            raise InputError(f"none of {len(entries)} pictures in {self.folder} can be read; first: {self.broken[0]}")
        self.paths = [entries[i][0] for i in good]
        self.captions = [entries[i][1] for i in good]
        if keep:
            pixels = np.stack([decoded for _, decoded in results if decoded is not None])
            self._pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def _try(self, path: Path, keep: bool) -> tuple[str, np.ndarray | None]:
        try:
            pixels = load_picture(path, self.resolution)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{type(error).__name__}: {error}", None
        return "", pixels if keep else None

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: int) -> Tensor:
        """(3, height, width) in [-1, 1]."""
        if self._pixels is not None:
            stored = self._pixels[index]
        else:
            stored = torch.from_numpy(load_picture(self.paths[index], self.resolution).copy()).permute(2, 0, 1)
        return stored.float() / 127.5 - 1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels(index), index


class BatchOrder(Sampler[list[int]]):
    """The indices of each batch of an endless run over `size` samples, shuffled anew each epoch.

    Which samples batch b holds depends on (seed, b) only, so a resumed run needs nothing but its position. Processes
    take turns: process r of n sees batches r, r + n, ...
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int = 0, process: int = 0, processes: int = 1):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start
        self.process, self.processes = process, processes
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def sample(self, position: int) -> int:
        """The index of the sample at a position of the endless sequence."""
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self.size)
            self._epoch = epoch
        return int(self._order[offset])

    def batch(self, number: int) -> list[int]:
        first = (number * self.processes + self.process) * self.batch_size
        return [self.sample(p) for p in range(first, first + self.batch_size)]

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1


def picture_batches(pictures: Pictures, order: BatchOrder, workers: int = 0, flip: bool = False) -> Iterator:
    """Endless batches (pixels (batch, 3, height, width), indices (batch,)) in the given order."""
    loader = DataLoader(pictures, batch_sampler=order, num_workers=workers, persistent_workers=workers > 0)
    for number, (pixels, indices) in enumerate(loader, order.start):
        if flip:
            mirrored = torch.rand(len(pixels), generator=random(order.seed, 3, number, order.process)) < 0.5
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        yield pixels, indices
