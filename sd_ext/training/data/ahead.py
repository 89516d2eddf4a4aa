"""Reading ahead: pictures are decoded in threads while the last ones are trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(calls: Iterator[Callable[[], T]], threads: int, depth: int) -> Iterator[T]:
    """The calls' results in order; what a call raises is raised in its place.

    Args:
        calls: may be endless; taken one by one, at most `depth` before their results are asked for.
        threads: how many calls run at once; 0 to call each when it is its turn.
        depth: results made in advance, which is what memory must hold.
    """
    if threads < 1:
        for call in calls:
            yield call()
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > max(depth, 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
