"""Ctrl-C and SIGTERM during a run: it finishes its step, saves and leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import time

SAME_REQUEST = 2.0  # seconds in which signals count as one: the terminal and the launcher both send Ctrl-C


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C or SIGTERM; it is saved and can be resumed."""


class handle_signals:
    """A context in which Ctrl-C and SIGTERM do not end the process at once, so that it can finish its step.

    The value of the context is a list that is empty until a signal arrives. A second request, more than `SAME_REQUEST`
    seconds after the first, ends the process immediately.
    """

    def __enter__(self) -> list[int]:
        self.asked: list[int] = []
        self.before, self.since = {}, 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # only the main thread may handle signals
                self.before[number] = signal.signal(number, self._ask)
        return self.asked

    def _ask(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.asked and now - self.since > SAME_REQUEST:  # a second request
            os._exit(128 + number)
        self.since = self.since if self.asked else now
        self.asked.append(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
