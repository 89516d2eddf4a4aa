"""What earlier starts have found out about files that have not changed since: the file `known.json` in the cache.

A picture is decoded and hashed, an entry of the cache read and checked, a run's memory estimated once; as long as the
file's size and time of change are the same, the answer is taken from here. What training reads is checked when it is
read, as ever.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.reading import read_json

FILE = "known.json"
MOST = 50_000  # answers of one kind that are kept, the latest

log = logging.getLogger(__name__)

State = list[int]


def state_of(path: str | os.PathLike[str]) -> State | None:
    """The size and time of change of a file, in bytes and nanoseconds; None if it cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


class Known:
    """Answers by kind and name, each with the state of the files it holds for.

    Args:
        folder: the folder of the cache; nothing is written before `keep`.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.path = Path(folder) / FILE
        self._answers: dict[str, dict[str, list[Any]]] = {}
        self._new = False
        if self.path.is_file():
            try:
                self._answers = read_json(self.path, dict[str, dict[str, list[Any]]])
            except InputError as error:
                log.warning("%s; what it knew is found out anew", error)

    def get(self, kind: str, name: str, state: State) -> Any:
        """The answer, if the files are still in this state; else None."""
        found = self._answers.get(kind, {}).get(name)
        return found[1] if found and len(found) == 2 and found[0] == state else None

    def put(self, kind: str, name: str, state: State, answer: Any) -> None:
        """Remember an answer, a JSON value."""
        self._answers.setdefault(kind, {})[name] = [state, answer]
        self._new = True

    def keep(self) -> None:
        """Write what is new; a folder that cannot be written to only costs time."""
        if not self._new or not os.access(self.path.parent, os.W_OK | os.X_OK):
            return
        latest = {kind: dict(list(answers.items())[-MOST:]) for kind, answers in self._answers.items()}
        whole.write_json(self.path, latest)
        self._new = False
