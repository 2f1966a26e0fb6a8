"""Images per second from a streamed image cache, by their size, from the disk and the page cache.

    python -m benchmarks.streaming [--gigabytes=1.5] [--directory=/tmp] [--sides 32 64 224 336]

Batches of 512 in the random order of an epoch, from an image cache of random bytes that is made for
it and removed. Compared: the memory map itself (`cache.pixels[rows]`) and the reader that training
uses (`cache.read(rows)`), in turns; medians of the rounds. "Cold" is after
`posix_fadvise(DONTNEED)` on the whole file, so a disk's or a host's own cache may still answer.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.image_caches import make_cold, make_warm, random_cache
from lattec_jax.data.images.image_cache import ImageCache

BATCH = 512
SECONDS = 1.5  # of one measurement
WANTED = 8000  # images per second that one GPU is to train on


def rate(read: Callable[[np.ndarray], np.ndarray], order: np.ndarray) -> float:
    """Images per second, over whole batches of an epoch."""
    start, count = time.perf_counter(), 0
    while count + BATCH <= len(order):
        read(order[count : count + BATCH])
        count += BATCH
        if time.perf_counter() - start > SECONDS:
            break
    return count / (time.perf_counter() - start)


def measure(cache: ImageCache, rounds: int) -> dict[str, float]:
    """Median rates by way of reading and state of the page cache."""
    path, found = cache.pixels.filename, {}
    for turn in range(rounds):
        order = np.random.default_rng(turn).permutation(len(cache.ids))
        for state, prepare in (("cold", make_cold), ("warm", make_warm)):
            for way in ("map", "reader"):
                fresh = ImageCache(cache.ids, np.load(path, mmap_mode="r"), cache.sizes, ())
                read = fresh.read
                if way == "map":
                    read = lambda rows, pixels=fresh.pixels: np.array(pixels[rows])  # noqa: E731
                prepare(path)
                found.setdefault(f"{way} {state}", []).append(rate(read, order))
    return {key: float(np.median(values)) for key, values in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.5, help="size of each image cache")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 224, 336])
    parser.add_argument("--rounds", type=int, default=3)
    values = parser.parse_args()
    print("| side | KB an image | map, cold | map, warm | reader, cold | reader, warm | "
          f"reader, cold, GB/s | of {WANTED:,}/s |")  # fmt: skip
    print("|" + "---|" * 8)
    for side in values.sides:
        size = side * side * 3
        with random_cache(values.directory, int(values.gigabytes * 1e9 / size), side) as cache:
            found = measure(cache, values.rounds)
        rates = [found[f"{way} {state}"] for way in ("map", "reader") for state in ("cold", "warm")]
        cold = found["reader cold"]
        cells = [f"{value:,.0f}" for value in rates]
        print(f"| {side} | {size / 1e3:.1f} | {' | '.join(cells)} | {cold * size / 1e9:.2f} | "
              f"{cold / WANTED:.2f}× cold, {found['reader warm'] / WANTED:.1f}× warm |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
