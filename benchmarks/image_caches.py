"""Image caches of random bytes, and a cold page cache: shared by the measurements."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lattec_jax.data.images.image_cache import ImageCache

_AT_ONCE = 2**26  # bytes that are written at a time


@contextmanager
def random_cache(directory: Path, images: int, side: int) -> Iterator[ImageCache]:
    """A training image cache of square images, which is deleted afterwards."""
    path = directory / f"pixels-{images}-{side}.npy"
    try:
        shape = (images, side, side, 3)
        pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        generator, flat = np.random.default_rng(0), pixels.reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            part[:] = np.frombuffer(generator.bytes(part.size), np.uint8)
        pixels.flush()
        del pixels, flat, part
        ids = tuple(f"{n:07}.jpg" for n in range(images))
        sizes = np.full((images, 2), side, np.int32)
        yield ImageCache(ids, np.load(path, mmap_mode="r"), sizes, ())
    finally:
        path.unlink(missing_ok=True)


def make_cold(path: str) -> None:
    """Ask the system to forget a file's pages; it keeps those that are mapped and were touched."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def make_warm(path: str) -> None:
    """Bring a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(_AT_ONCE):
            pass
