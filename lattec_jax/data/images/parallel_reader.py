"""Read entries of a memory-mapped array in any order, with several threads.

A memory map that is not in memory yet is read page by page, and each page fault waits for the one
before. Reading entries as a whole, many at a time, keeps the disk busy
(`python -m benchmarks.streaming` measures both).
"""

from __future__ import annotations

import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lattec_jax.runtime.errors import DataError

THREADS = 16  # concurrent reads


class ParallelReader:
    """`array[indices]` of a memory map. Like the map, it keeps the file open as long as it lives.

    Args:
        array: `[N, ...]`, C-contiguous, mapped from the start of its file or of the array in it.
    """

    def __init__(self, array: np.memmap) -> None:
        self._array = array
        self._path = str(array.filename)
        self._file = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        # Kept between calls, unlike the threads of `prefetch`: there is a call for every batch.
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="parallel_reader")

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Copy the entries at these indices, `[B, ...]`."""
        out = np.empty((len(indices), *self._array.shape[1:]), self._array.dtype)
        parts = np.array_split(np.arange(len(indices)), min(THREADS, len(indices)))
        for _ in self._pool.map(lambda positions: self._read(out, indices, positions), parts):
            pass
        return out

    def _read(self, out: np.ndarray, indices: np.ndarray, positions: np.ndarray) -> None:
        start, size = self._array.offset, out[0].nbytes
        for position, index in zip(positions.tolist(), indices[positions].tolist(), strict=True):
            if os.preadv(self._file, [out[position].data], start + index * size) != size:
                raise DataError(
                    f"{self._path} ends before entry {index}; delete its directory and run the "
                    "command again"
                )
