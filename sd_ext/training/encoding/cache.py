"""A cache on disk for the outputs of frozen encoders: latents of pictures, states of captions.

A cache file's name is the sha256 of all inputs of the encoding: the picture's bytes, its size and crop, the encoder's
weights and settings, the number format. If any of them changes, so does the name; so an entry cannot be out of date,
and the same content is found again wherever it comes from. Entries are safetensors files with a checksum. Each is
written under a temporary name and then renamed: several processes may fill a cache at once, and a process that is
killed leaves no half-written entry.
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
from sd_ext.training.data.known import Known, state_of
from sd_ext.training.encoding.keys import key, latent_key, text_key

__all__ = ["Cache", "Cached", "key", "latent_key", "text_key"]

Entry = dict[str, Tensor]
FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class Cache:
    """A folder of cache entries; an entry is a dictionary of named tensors.

    Args:
        folder: the cache's folder; made if it does not exist.
        known: what is known of entries that have not changed; None to read each.

    A folder that may only be read serves as long as it has every entry that is asked for.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], known: Known | None = None):
        self.folder, self.known = Path(folder), known
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"no cache can be kept in {folder}: {error.strerror}; name another folder") from error
        self.writable = os.access(self.folder, os.W_OK | os.X_OK)

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Entry | None:
        """The tensors of an entry, memory-mapped from its file.

        Returns:
            The tensors; None if there is no such entry. A damaged entry is removed, with a warning, and counts as none.

        Raises:
            TrainingError: the file exists but cannot be opened.
        """
        path = self.path(key)
        try:
            return load_checked(path, key)
        except FileNotFoundError:
            return None
        except DamagedError:
            if self.writable:
                log.warning("the cache entry %s was damaged and has been removed; it is made anew", path)
                path.unlink(missing_ok=True)
            return None
        except OSError as error:  # such as too many open files: no reason to remove anything
            raise TrainingError(f"the cache entry {path} cannot be read: {error}") from error

    def fact(self, kind: str, key: str, find: Callable[[], Any]) -> Any:
        """What is known of an entry that is there, else what `find` returns, a JSON value other than None."""
        state = state_of(self.path(key)) if self.known else None
        if self.known is None or state is None:
            return find()
        answer = self.known.get(kind, key, state)
        if answer is None:
            answer = find()
            if answer is not None:
                self.known.put(kind, key, state, answer)
        return answer

    def whole(self, key: str) -> bool:
        """Whether there is an undamaged entry; one that has not changed since that was known is not read again."""
        return bool(self.fact("entries", key, lambda: self.read(key) is not None or None))

    def write(self, key: str, entry: Entry) -> None:
        """Write an entry; another process may write the same one at the same time.

        Nothing waits for the disk, which takes ten times as long: `read` sees damage, and makes the entry anew.

        Raises:
            TrainingError: the disk is full. Entries written before stay.
            WriteError: writing failed for another reason.
        """
        try:
            with whole.file(self.path(key), wait=False) as new:
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
        """Encode and write all missing entries. If processes share the work, they must wait for each other afterwards.

        The last bits of an encoder's output depend on the other samples of its batch. So batches are always formed
        from all jobs, missing or not: an entry has the same bits whether or not the filling was interrupted, and with
        any number of processes.

        Args:
            jobs: key of each wanted entry -> (group, input). Only jobs of one group share a batch; for pictures the
                group is the size.
            make: encodes a batch: from a list of at most `batch_size` inputs to the list of their entries.
            batch_size: most inputs in a batch.
            title: title of the progress bar, which is shown only if entries are missing.
            process, processes: number of this process and how many there are; each encodes its share of the batches.
            console: where process 0 shows the progress bar; None for the standard error.
            load: if given, called with each input; `make` then gets its results. Meant for slow reading, such as
                decoding pictures, which can run ahead in threads.
            threads: how many threads run `load` ahead; 0 for none.

        Returns:
            The number of entries that this process wrote.

        Raises:
            InputError: entries are missing, and the folder cannot be written to.
            TrainingError: the disk is full.
        """
        if process == 0 and self.writable:
            for folder in self.folder.glob("??"):
                whole.sweep(folder)
        mine = batched(jobs, batch_size)[process::processes]
        missing = {name for batch in mine for name in batch if not self.whole(name)}
        if missing and not self.writable:
            raise InputError(
                f"no cache can be kept in {self.folder}: it cannot be written to, and {len(missing)} of "
                f"{sum(map(len, mine))} entries are missing or damaged; name another folder"
            )
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
    """The keys of the jobs, in batches of at most `batch_size` keys of one group."""
    groups: dict[Hashable, list[str]] = {}
    for name, (group, _) in jobs.items():
        groups.setdefault(group, []).append(name)
    return [names[i : i + batch_size] for names in groups.values() for i in range(0, len(names), batch_size)]


class Cached:
    """Reads entries of a filled cache; the first ones, up to a number of bytes, are kept in memory.

    Args:
        cache: a cache that holds all the entries, after `Cache.fill`.
        keys: the keys of the entries: a list, read by index, or a dictionary from any kind of index to key. Equal
            keys share memory.
        limit: most bytes of tensors kept in memory; the other entries are read from disk each time.
    """

    def __init__(self, cache: Cache, keys: Sequence[str] | Mapping[Any, str], limit: int = 2**30):
        self.cache, self.keys, self.limit, self.held = cache, keys, limit, 0
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: Any) -> Entry:
        """The tensors of the entry at an index of `keys`; they must not be changed.

        Raises:
            TrainingError: the entry was removed or damaged since the cache was filled.
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
        self._entries[name] = {n: tensor.clone() for n, tensor in entry.items()}  # else the file would stay mapped
        return self._entries[name]

    def stack(self, places: Sequence[Any]) -> Entry:
        """The entries at several indices, which must have equal shapes, stacked: each tensor (len(places), ...)."""
        entries = [self[place] for place in places]
        return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}
