"""Reading ahead: the next pictures are decoded in threads while the current ones are trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(calls: Iterator[Callable[[], T]], threads: int, depth: int) -> Iterator[T]:
    """Run calls in threads and yield their results in the order of the calls.

    Args:
        calls: functions without arguments. May be endless: at most `depth` calls are taken in advance.
        threads: how many calls run at once; 0 runs each call in this thread, when its result is asked for.
        depth: how many results are prepared in advance, and so held in memory.

    Yields:
        The result of each call. If a call raises, its exception is raised here when its turn comes.
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
