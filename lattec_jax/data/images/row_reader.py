"""Rows of a memory-mapped array in any order, read by several threads.

A memory map that is not in memory yet is read page by page, each fault waiting for the one before;
reads of whole rows at once, many at a time, keep the disk busy (`python -m benchmarks.streaming`
measures both).
"""

from __future__ import annotations

import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lattec_jax.runtime.errors import DataError

THREADS = 16  # reads that are under way at once


class RowReader:
    """`array[rows]` of a memory map. Like the map it keeps the file open as long as it lives.

    Args:
        array: `[N, ...]`, C-contiguous, mapped from its file's start on or from a header's end.
    """

    def __init__(self, array: np.memmap) -> None:
        self._array = array
        self._file = os.open(array.filename, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rows")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Copies of the rows with these numbers, `[B, ...]`.

        Raises:
            DataError: the file has been cut short since it was opened.
        """
        found = np.empty((len(rows), *self._array.shape[1:]), self._array.dtype)
        parts = np.array_split(np.arange(len(rows)), min(THREADS, len(rows)))
        for _ in self._pool.map(lambda part: self._read(found, rows, part), parts):
            pass
        return found

    def _read(self, found: np.ndarray, rows: np.ndarray, part: np.ndarray) -> None:
        start, size = self._array.offset, found[0].nbytes
        for place, row in zip(part.tolist(), rows[part].tolist(), strict=True):
            if os.preadv(self._file, [found[place]], start + row * size) != size:
                raise DataError(
                    f"{self._array.filename} ends before row {row}; delete its directory and run "
                    "the command again"
                )
