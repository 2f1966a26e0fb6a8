"""A `map` in threads that keeps the order, for work that mostly waits or runs outside of Python."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MOST = 16  # threads
FEWEST = 4  # threads, where there are as many cores: the first items may be quicker than the others
_TIMED = 16  # items that are done before there are threads
# Seconds that an item keeps Python to itself, about. A thread more than there are such parts in an
# item only adds to those that wait for their turn, and the turns then take most of the time.
_IN_PYTHON = 0.25e-3

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R], items: Iterable[T], *, ahead: int | None = None
) -> Iterator[R]:
    """`map(function, items)`, in as many threads as the first items show to be of use.

    Args:
        function: of one item.
        items: read only as far as they are worked on.
        ahead: results that may wait to be taken; None: four of each thread.
    """
    items, times = iter(items), []
    for item in itertools.islice(items, _TIMED):
        start = time.perf_counter()
        result = function(item)
        times.append(time.perf_counter() - start)
        yield result
    threads = min(MOST, os.cpu_count() or 1, _useful(times))
    ahead = 4 * threads if ahead is None else ahead
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="in_order")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _useful(times: list[float]) -> int:
    """Threads that items of such durations can keep busy."""
    return max(FEWEST, math.ceil(sorted(times)[len(times) // 2] / _IN_PYTHON)) if times else 1
