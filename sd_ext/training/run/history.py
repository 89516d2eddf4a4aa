"""The log of a run's metrics: one JSON object a line. A step is in it once, however often the run was resumed."""

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
    """The log of a run, kept in memory and in a file that grows by one line an entry.

    Args:
        path: the file.
        step: the step to resume from; later entries are dropped, since those steps run again.
        writes: whether this process writes the file; True in the first process only.

    Attributes:
        entries: {"step": ..., "loss": ..., ...} for each logged step.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        self.path, self.writes = path, writes
        self.entries: list[dict[str, float]] = [e for e in read_history(path) if e["step"] <= step]
        if writes and path.exists():
            whole.write_text(path, self._text())

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Append the metrics of a step."""
        self.entries.append({"step": step, **metrics})
        if self.writes:
            whole.append(self.path, json.dumps(self.entries[-1]))

    def seal(self) -> str:
        """Flush the file to disk; returns a checksum of all entries, eight hexadecimal digits, for a checkpoint."""
        if self.writes and self.path.exists():
            whole.sync(self.path)
        return f"{zlib.crc32(self._text().encode()):08x}"

    def check(self, sealed: str | None) -> None:
        """Warn if the entries do not match `sealed`, the checksum from `seal` in a checkpoint. The run goes on."""
        if self.writes and sealed is not None and sealed != self.seal():
            log.warning(
                "%s is damaged: it does not hold what was logged up to here, and what is drawn of it is not all true",
                self.path,
            )

    def _text(self) -> str:
        return "".join(json.dumps(entry) + "\n" for entry in self.entries)


MOST_DAMAGED = 1000  # lines, after which a file is no log any more


@dataclass
class Entry:
    """The checked field of a line; all other fields are metrics."""

    step: int


def read_history(path: Path) -> list[dict[str, float]]:
    """Read the entries of a log file; empty if it does not exist.

    Damaged lines are left out with a warning; a last line that was cut off when the process was killed without one,
    since its step is done again. If the file cannot be read at all, the entries read so far are returned, with a
    warning as well: a log never stops a run.
    """
    if not os.path.lexists(path):
        return []
    entries: list[dict[str, float]] = []
    damaged: list[str] = []
    try:
        with open_file(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
                try:
                    if line.strip():
                        entries.append(_entry(line, f"line {number}"))
                except InputError as error:
                    if not line.endswith(b"\n") and len(line) < LINE_BYTES:
                        continue
                    damaged.append(f"first: {error}" if not damaged else "")
                if len(damaged) > MOST_DAMAGED:
                    damaged[0] += f"; nothing is read from line {number} on"
                    break
    except (InputError, OSError) as error:
        damaged.insert(0, str(error))
    if damaged:
        log.warning("%s: damaged lines are left out of the log (%s)", path, printable(damaged[0]))
    return entries


def _entry(line: bytes, where: str) -> dict[str, float]:
    found = parse_json(line, where, dict[str, Measured], finite=False)
    check(found, Entry, where)
    return found
