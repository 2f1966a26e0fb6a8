"""Compute the next items in threads while the current one is being used. Results keep their order.

Serves whatever mostly waits (disk, network) or runs outside of Python (image decoding, transfers).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

MAX_THREADS = 16
MIN_THREADS = 4  # where there are as many cores: the first items may be quicker than later ones
_TIMED = 16  # items that are processed, and timed, before threads are started
# About how many seconds of an item hold Python's lock. More threads than an item has such parts
# only queue for the lock, and passing it on then takes most of the time.
_LOCKED_S = 0.25e-3
CONTAINER_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time, in how many

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int | None = None,
    ahead: int | None = None,
    abort: Callable[[], object] | None = None,
) -> Generator[R]:
    """Like `map(function, items)`, computed by threads before the results are asked for.

    An exception of `function` is raised where its result would have been yielded; what is queued
    then is cancelled, as it is when the iterator is closed.

    Args:
        function: called in a thread; with `threads=1` in the order of the items.
        items: consumed by the caller's thread, only as far as they are worked on.
        threads: None: as many as the durations of the first items show to be useful. These items
            are computed in the caller's thread.
        ahead: maximum number of results that are computed or queued; None: four per thread.
        abort: called if the iterator is left before its end, to end the calls that are running:
            they are waited for.
    """
    items = iter(items)
    if threads is None:
        durations = []
        for item in itertools.islice(items, _TIMED):
            start = time.perf_counter()
            result = function(item)
            durations.append(time.perf_counter() - start)
            yield result
        median = sorted(durations)[len(durations) // 2] if durations else 0
        useful = max(MIN_THREADS, math.ceil(median / _LOCKED_S))
        threads = min(MAX_THREADS, usable_cores(), useful)
    ahead = 4 * threads if ahead is None else ahead
    queue: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        for item in items:
            queue.append(pool.submit(function, item))
            if len(queue) > ahead:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
        abort = None  # nothing is running
    finally:
        if abort is not None:
            abort()
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Return the number of cores that this process may use: its affinity, and the limit of its
    container."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container; "max", no limit
        quota, period = map(int, CONTAINER_LIMIT.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores
