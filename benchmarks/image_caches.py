"""Image caches of random bytes, and control over the page cache, for the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lattec_jax.data.images.image_cache import ImageCache

_CHUNK_BYTES = 2**26


@contextmanager
def random_cache(directory: Path, images: int, side: int) -> Iterator[ImageCache]:
    """Create a training image cache of square images, deleted afterwards."""
    path = directory / f"pixels-{images}-{side}.npy"
    try:
        shape = (images, side, side, 3)
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        generator, flat = np.random.default_rng(0), pixels.reshape(-1)
        for start in range(0, flat.size, _CHUNK_BYTES):
            part = flat[start : start + _CHUNK_BYTES]
            part[:] = np.frombuffer(generator.bytes(part.size), np.uint8)
        pixels.flush()
        del pixels, flat, part
        ids = tuple(f"{n:07}.jpg" for n in range(images))
        sizes = np.full((images, 2), side, np.int32)
        yield ImageCache(ids, np.load(path, mmap_mode="r"), sizes, ())
    finally:
        path.unlink(missing_ok=True)


def make_cold(path: str) -> None:
    """Drop a file from the page cache, except for pages that are mapped and were accessed."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def make_warm(path: str) -> None:
    """Load a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_CHUNK_BYTES):
            pass
