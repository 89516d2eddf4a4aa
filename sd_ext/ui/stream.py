"""Work in a thread of its own, as an iterator of what there is to show; and stopping it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MOST_SESSIONS = 10_000  # whose drawings can be stopped; the oldest are forgotten


class Stopped(Exception):
    """Whoever asked for it does not want it any more."""


@dataclass(frozen=True)
class Progress:
    """How far a drawing is.

    Args:
        text: in words.
        share: 0 to 1.
        preview: a picture of what there is so far, or None.
        place: which picture of several, from 0.
    """

    text: str
    share: float = 0.0
    preview: Any = None
    place: int = 0


class Report:
    """What work is given to speak through.

    Args:
        stop: set by whoever wants it to end.
    """

    def __init__(self, stop: threading.Event):
        self.stop, self.items = stop, queue.SimpleQueue[Any]()

    def show(self, item: Any) -> None:
        """Hand something over. Raises `Stopped` if the work is to end."""
        self.go_on()
        self.items.put(item)

    def go_on(self) -> None:
        """Raise `Stopped` if the work is to end."""
        if self.stop.is_set():
            raise Stopped


_END = object()


def streamed(work: Callable[[Report], Any], stop: threading.Event) -> Iterator[Any]:
    """Do work in a thread.

    Where progress comes faster than it is taken, only the newest is handed on. If the iterator is closed, as when a
    visitor leaves, the work is told to stop.

    Args:
        work: gets a `Report`.
        stop: set to end it.

    Yields:
        What the work shows, in order.

    Raises:
        Whatever the work raises; `Stopped` if it was stopped.
    """
    report, failed = Report(stop), list[BaseException]()

    def run() -> None:
        try:
            work(report)
        except BaseException as error:  # raised where it is waited for
            failed.append(error)
        finally:
            report.items.put(_END)

    threading.Thread(target=run, name="sd-ext-ui-work", daemon=True).start()
    try:
        item = report.items.get()
        while item is not _END:
            following = [item]
            while not report.items.empty():
                following.append(report.items.get())
            item = None
            for one, after in zip(following, [*following[1:], None], strict=True):
                if one is _END:
                    item = _END
                elif not (isinstance(one, Progress) and isinstance(after, Progress)):
                    yield one
            item = item or report.items.get()
    finally:
        stop.set()
    if failed:
        raise failed[0]


class Stops:
    """What each visitor has under way, so that it can be stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, set[threading.Event]] = {}

    def begin(self, session: str) -> threading.Event:
        """Note that something begins.

        Args:
            session: whose it is.

        Returns:
            What is set when it has to end.
        """
        stop = threading.Event()
        with self._lock:
            running = {each for each in self._running.pop(session, ()) if not each.is_set()}
            self._running[session] = {*running, stop}
            while len(self._running) > MOST_SESSIONS:
                self._running.pop(next(iter(self._running)))
        return stop

    def stop(self, session: str) -> int:
        """Stop all that a visitor has under way. Returns how many that were."""
        with self._lock:
            running = [each for each in self._running.pop(session, ()) if not each.is_set()]
        for each in running:
            each.set()
        return len(running)
