"""What a run logged: one JSON object a line, each step once however often it was resumed."""

from __future__ import annotations

import json
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from sd_ext import whole
from sd_ext.declared import Measured, check
from sd_ext.errors import InputError, printable
from sd_ext.plain_files import open_file
from sd_ext.reading import LINE_BYTES, parse_json

log = logging.getLogger(__name__)


class History:
    """`entries` of {"step": ..., "loss": ..., ...}, in a file that grows line by line.

    Args:
        path: the file.
        step: the step to resume from; later entries are dropped, since those steps run again.
        writes: False in all but the first process.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        self.path, self.writes = path, writes
        self.entries: list[dict[str, float]] = [e for e in read_history(path) if e["step"] <= step]
        if writes and path.exists():
            whole.write_text(path, self._text())

    def add(self, step: int, metrics: dict[str, float]) -> None:
        self.entries.append({"step": step, **metrics})
        if self.writes:
            whole.append(self.path, json.dumps(self.entries[-1]))

    def seal(self) -> str:
        """Wait until the file is on the disk; eight digits that depend on every entry, for a checkpoint to keep."""
        if self.writes and self.path.exists():
            whole.sync(self.path)
        return f"{zlib.crc32(self._text().encode()):08x}"

    def check(self, sealed: str | None) -> None:
        """Warn where the entries are not those that `seal` told a checkpoint of. The run goes on all the same."""
        if self.writes and sealed is not None and sealed != self.seal():
            log.warning(
                "%s is damaged: it does not hold what was logged up to here, and what is drawn of it is not all true",
                self.path,
            )

    def _text(self) -> str:
        return "".join(json.dumps(entry) + "\n" for entry in self.entries)


@dataclass
class Entry:
    """What a line declares beside its measures."""

    step: int


def read_history(path: Path) -> list[dict[str, float]]:
    """The entries of a file. It is a log: damaged lines, such as a last one cut off by a kill, are left out and said.

    A file that cannot be read at all counts as one of damaged lines only.
    """
    if not os.path.lexists(path):
        return []
    entries, damaged = [], ""
    try:
        with open_file(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
                try:
                    entries.append(_entry(line, f"line {number}"))
                except InputError as error:
                    damaged = damaged or f" (first: {error})"
                    continue
    except (InputError, OSError) as error:
        damaged = f" ({error})"
    if damaged:
        log.warning("%s: damaged lines are left out of the log%s", path, printable(damaged))
    return entries


def _entry(line: bytes, where: str) -> dict[str, float]:
    found = parse_json(line, where, dict[str, Measured], finite=False)
    check(found, Entry, where)
    return found
