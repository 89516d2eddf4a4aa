"""What a run logged: one JSON object a line, each step once however often it was resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path


class History:
    """`entries` of {"step": ..., "loss": ..., ...}, in a file that grows line by line.

    Args:
        path: the file.
        step: where the run goes on: later entries are those of steps that will be done again, and go.
        writes: False in all but the first process.
    """

    def __init__(self, path: Path, step: int, writes: bool = True):
        self.path, self.writes = path, writes
        self.entries: list[dict[str, float]] = [e for e in read_history(path) if e["step"] <= step]
        if writes and path.exists():
            partial = path.with_suffix(".tmp")
            partial.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))
            os.replace(partial, path)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        self.entries.append({"step": step, **metrics})
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps(self.entries[-1]) + "\n")


def read_history(path: Path) -> list[dict[str, float]]:
    """The entries of a file; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
