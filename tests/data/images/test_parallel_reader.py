"""What threads read equals the memory map."""

from __future__ import annotations

import contextlib
import gc
import os

import numpy as np
import pytest

from lattec_jax.data.images.image_cache import THREADS, ParallelReader
from lattec_jax.runtime.errors import DataError


@pytest.fixture
def mapped(tmp_path):
    """[50, 5, 7, 3] random bytes on disk."""
    values = np.random.default_rng(0).integers(0, 256, (50, 5, 7, 3), np.uint8)
    np.save(tmp_path / "pixels.npy", values)
    return np.load(tmp_path / "pixels.npy", mmap_mode="r")


@pytest.mark.parametrize("count", [1, THREADS - 1, THREADS, 3 * THREADS + 1])
def test_entries_equal_the_map(mapped, count):
    indices = np.random.default_rng(count).integers(0, 50, count).astype(np.int32)
    indices[-1] = 49  # the last one
    read = ParallelReader(mapped)
    found = read(indices)
    np.testing.assert_array_equal(found, np.asarray(mapped)[indices])
    np.testing.assert_array_equal(read(indices[::-1]), found[::-1])


def test_a_map_that_was_sliced_from_its_start_keeps_its_entries(mapped):
    read = ParallelReader(mapped[:20])
    np.testing.assert_array_equal(read(np.array([19, 3])), np.asarray(mapped)[[19, 3]])


def test_a_file_that_was_cut_short_is_named(mapped):
    read = ParallelReader(mapped)
    os.truncate(mapped.filename, os.path.getsize(mapped.filename) - 1)
    read(np.arange(49))
    with pytest.raises(DataError, match=r"pixels\.npy ends before entry 49"):
        read(np.arange(50))


def descriptors(path: str) -> int:
    """How often this process has a file open."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile by something else
            count += os.readlink(f"/proc/self/fd/{number}") == os.path.realpath(path)
    return count


def test_the_file_is_closed_with_its_reader(mapped):
    before = descriptors(mapped.filename)
    readers = [ParallelReader(mapped) for _ in range(3)]
    for reader in readers:
        reader(np.arange(4))
    assert descriptors(mapped.filename) > before
    del reader, readers
    gc.collect()
    assert descriptors(mapped.filename) == before
