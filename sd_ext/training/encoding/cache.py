"""What frozen encoders made of pictures and captions, kept in files that are named by everything they were made from.

A file's name is the sha256 of what went in: the picture's bytes, its size and crop, the encoder's weights and settings,
the number format. Other content has another name, so an entry cannot be out of date; the same content is found again
wherever it comes from. Entries are safetensors files with a checksum, which appear whole or not at all: any number of
processes may fill a cache at once, and a process that is killed leaves only whole entries.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sd_ext import whole
from sd_ext.checked import load_checked, save_checked
from sd_ext.errors import DamagedError, InputError, TrainingError, WriteError
from sd_ext.training.data.ahead import read_ahead
from sd_ext.training.encoding.keys import key, latent_key, text_key

__all__ = ["Cache", "Cached", "key", "latent_key", "text_key"]

Entry = dict[str, Tensor]
FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class Cache:
    """A folder of entries, each a few named tensors.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"no cache can be kept in {folder}: {error.strerror}; name another folder") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(f"no cache can be kept in {folder}: it cannot be written to; name another folder")

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Entry | None:
        """An entry's tensors, mapped from its file; None if there is none. A damaged one is removed, and told once.

        Raises:
            TrainingError: the file is there and cannot be opened.
        """
        path = self.path(key)
        try:
            return load_checked(path, key)
        except FileNotFoundError:
            return None
        except DamagedError:
            log.warning("the cache entry %s was damaged and has been removed; it is made anew", path)
            path.unlink(missing_ok=True)
            return None
        except OSError as error:  # such as too many open files: no reason to remove anything
            raise TrainingError(f"the cache entry {path} cannot be read: {error}") from error

    def write(self, key: str, entry: Entry) -> None:
        """Write an entry; another process may write the same one at the same time.

        Raises:
            TrainingError: the disk is full. Whole entries stay.
            WriteError: it fails.
        """
        try:
            with whole.file(self.path(key)) as new:
                save_checked(entry, new, key)
        except WriteError as error:
            if error.errno not in FULL:
                raise
            size = sum(tensor.nbytes for tensor in entry.values())
            raise TrainingError(
                f"the disk that holds {self.folder} is full: an entry needs {size / 1e6:.1f} MB. Free some space or put"
                " the cache elsewhere, and start again; what is cached so far is kept"
            ) from error

    def fill(
        self,
        jobs: Mapping[str, tuple[Hashable, Any]],
        make: Callable[[list[Any]], list[Entry]],
        batch_size: int,
        title: str = "filling the cache",
        process: int = 0,
        processes: int = 1,
        console: Console | None = None,
        load: Callable[[Any], Any] | None = None,
        threads: int = 0,
    ) -> int:
        """Make the entries that are missing. Afterwards, processes that shared the work must wait for each other.

        Batches are those of all jobs, whatever is missing: an encoder's last bits depend on the batch, and entries that
        are made after an interruption, or by more processes, must be the ones that would have been made without.

        Args:
            jobs: for the key of each entry wanted its group, e.g. a picture's size, and what it is made from.
            make: from the arguments of at most `batch_size` jobs of one group to their entries.
            batch_size: see there.
            title: of the progress bar, which shows only when something is missing.
            process, processes: which share of the jobs this process makes.
            console: of the bar; None for the standard error. Only process 0 shows it.
            load: called with a job's arguments before `make`, which then gets its results: for what `threads` can do
                ahead, such as decoding pictures.
            threads: in which `load` runs ahead; 0 for none.

        Returns:
            How many entries were made.
        """
        if process == 0:
            for folder in self.folder.glob("??"):
                whole.sweep(folder)
        mine = batched(jobs, batch_size)[process::processes]
        missing = {name for batch in mine for name in batch if self.read(name) is None}
        batches = [batch for batch in mine if not missing.isdisjoint(batch)]

        def loaded(batch: list[str]) -> list[Any]:
            return [load(jobs[name][1]) if load else jobs[name][1] for name in batch]

        console = console or Console(stderr=True)
        ready = read_ahead((partial(loaded, batch) for batch in batches), threads, threads)
        quiet = process > 0 or not missing or not console.is_terminal
        for batch, args in track(zip(batches, ready, strict=True), title, len(batches), console=console, disable=quiet):
            for name, entry in zip(batch, make(args), strict=True):
                if name in missing:
                    self.write(name, entry)
        return len(missing)


def batched(jobs: Mapping[str, tuple[Hashable, Any]], batch_size: int) -> list[list[str]]:
    """Keys in batches of one group."""
    groups: dict[Hashable, list[str]] = {}
    for name, (group, _) in jobs.items():
        groups.setdefault(group, []).append(name)
    return [names[i : i + batch_size] for names in groups.values() for i in range(0, len(names), batch_size)]


class Cached:
    """Entries by place: from memory, as far as a limit goes, and from the cache's files beyond it.

    Args:
        cache: holds them all; `Cache.fill` sees to it.
        keys: of the entries: a list, or what `Cached[...]` is asked for -> key; equal keys share memory.
        limit: bytes of tensors held in memory.
    """

    def __init__(self, cache: Cache, keys: Sequence[str] | Mapping[Any, str], limit: int = 2**30):
        self.cache, self.keys, self.limit, self.held = cache, keys, limit, 0
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: Any) -> Entry:
        """An entry's tensors, not to be changed.

        Raises:
            TrainingError: it has been removed or damaged since the cache was filled.
        """
        name: str = self.keys[place]  # type: ignore[assignment]  # not a slice
        if name in self._entries:
            return self._entries[name]
        entry = self.cache.read(name)
        if entry is None:
            raise TrainingError(f"{self.cache.path(name)} is gone from the cache; start again, and it is made anew")
        size = sum(tensor.nbytes for tensor in entry.values())
        if self.held + size > self.limit:
            return entry
        self.held += size
        self._entries[name] = {n: tensor.clone() for n, tensor in entry.items()}  # the file would stay mapped else
        return self._entries[name]

    def stack(self, places: Sequence[Any]) -> Entry:
        """Entries of equal shapes, each tensor stacked: (len(places), ...)."""
        entries = [self[place] for place in places]
        return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}
