"""`prefetch`: order, errors, a bounded number of results, as many threads as are useful."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lattec_jax.data import prefetch as module
from lattec_jax.data.prefetch import MIN_THREADS, prefetch


def test_the_order_is_that_of_the_items_whichever_is_done_first():
    delays = [0.004, 0.001, 0.003, 0.002] * 20
    found = list(prefetch(lambda item: (time.sleep(item[1]), item)[1], enumerate(delays)))
    assert found == list(enumerate(delays))
    assert list(prefetch(str, [])) == []
    assert list(prefetch(str, [7])) == ["7"]


def test_few_results_are_held_at_once(monkeypatch):
    """The reader never runs far ahead of the writer, so sets may be larger than memory."""
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    lock, ahead, most = threading.Lock(), 0, 0

    def produce(item):
        nonlocal ahead, most
        with lock:
            ahead += 1
            most = max(most, ahead)
        return item

    for expected, item in enumerate(prefetch(produce, range(500))):
        assert item == expected
        with lock:
            ahead -= 1
    assert most <= 10


def test_quick_items_get_few_threads_and_slow_ones_many(monkeypatch):
    now, pools = 0.0, []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int, **options) -> None:
            pools.append(threads)
            super().__init__(threads, **options)

    def threads_of(seconds: float) -> int:
        """How many threads there are for items of such a duration, by a clock of our own."""

        def work(item: int) -> None:
            nonlocal now
            now += seconds

        assert len(list(prefetch(work, range(50)))) == 50
        return pools.pop()

    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    assert threads_of(0.0) == MIN_THREADS
    assert threads_of(0.0014) == 6
    assert threads_of(0.005) == 8


def test_an_error_comes_in_its_turn_and_what_waits_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    begun = []

    def fails(item):
        begun.append(item)
        if item == 30:
            raise ValueError("thirty")
        return item

    results = prefetch(fails, itertools.count())
    assert list(itertools.islice(results, 30)) == list(range(30))
    with pytest.raises(ValueError, match="thirty"):
        next(results)
    assert max(begun) < 60


def test_one_thread_computes_a_little_ahead_and_ends_with_the_iterator():
    begun = []
    results = prefetch(lambda item: (begun.append(item), item)[1], range(100), threads=1, ahead=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert begun == list(range(len(begun))) and len(begun) <= 6
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_one_thread_passes_an_exception_in_its_turn():
    def fails(item):
        if item == 2:
            raise OSError("the disk is gone")
        return item

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for item in prefetch(fails, range(50), threads=1, ahead=2):
            seen.append(item)
    assert seen == [0, 1]


def test_what_is_running_is_ended_when_the_iterator_is_left():
    ended = threading.Event()
    results = prefetch(
        lambda item: item == 0 or ended.wait(60), range(9), threads=2, abort=ended.set
    )
    assert next(results)
    results.close()
    assert ended.is_set()
    unused = threading.Event()
    assert list(prefetch(str, [1], abort=unused.set)) == ["1"] and not unused.is_set()


def test_usable_cores(monkeypatch, tmp_path):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(module, "CONTAINER_LIMIT", tmp_path / "cpu.max")
    assert module.usable_cores() == 6
    for limit, cores in (("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
        assert module.usable_cores() == cores
