"""Measure images/s from a streamed image cache, by image size, from disk and from page cache.

    python -m benchmarks.streaming [--gigabytes=1.5] [--directory=/tmp] [--sides 32 64 224 336]

Batches of 512 in the random order of an epoch, from a temporary image cache of random bytes.
Compared are the memory map (`cache.pixels[indices]`) and the reader that training uses
(`cache.read(indices)`), alternating; medians of the rounds. "Cold" is after
`posix_fadvise(DONTNEED)` on the full file; a cache of the disk or of the host may still have it.
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
TARGET_RATE = 8000  # images/s: the goal for training on one GPU


def rate(read: Callable[[np.ndarray], np.ndarray], order: np.ndarray) -> float:
    """Return images/s, over full batches of an epoch."""
    start, count = time.perf_counter(), 0
    while count + BATCH <= len(order):
        read(order[count : count + BATCH])
        count += BATCH
        if time.perf_counter() - start > SECONDS:
            break
    return count / (time.perf_counter() - start)


def measure(cache: ImageCache, rounds: int) -> dict[str, float]:
    """Return the median rate for each reader and state of the page cache."""
    path, found = cache.pixels.filename, {}
    for turn in range(rounds):
        order = np.random.default_rng(turn).permutation(len(cache.ids))
        for state, prepare in (("cold", make_cold), ("warm", make_warm)):
            for reader in ("map", "reader"):
                fresh = ImageCache(cache.ids, np.load(path, mmap_mode="r"), cache.sizes, ())
                read = fresh.read
                if reader == "map":
                    read = lambda indices, pixels=fresh.pixels: np.array(pixels[indices])  # noqa: E731
                prepare(path)
                found.setdefault(f"{reader} {state}", []).append(rate(read, order))
    return {key: float(np.median(values)) for key, values in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.5, help="size of each image cache")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 224, 336])
    parser.add_argument("--rounds", type=int, default=3)
    values = parser.parse_args()
    print("| side | KB per image | map, cold | map, warm | reader, cold | reader, warm | "
          f"reader, cold, GB/s | of {TARGET_RATE:,}/s |")  # fmt: skip
    print("|" + "---|" * 8)
    for side in values.sides:
        size = side * side * 3
        with random_cache(values.directory, int(values.gigabytes * 1e9 / size), side) as cache:
            found = measure(cache, values.rounds)
        rates = [
            found[f"{reader} {state}"] for reader in ("map", "reader") for state in ("cold", "warm")
        ]
        cold = found["reader cold"]
        cells = [f"{value:,.0f}" for value in rates]
        print(f"| {side} | {size / 1e3:.1f} | {' | '.join(cells)} | {cold * size / 1e9:.2f} | "
              f"{cold / TARGET_RATE:.2f}× cold, {found['reader warm'] / TARGET_RATE:.1f}× warm |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
