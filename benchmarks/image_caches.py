"""Measure how fast image caches are written, by the number of processes that decode.

    python -m benchmarks.image_caches --images=FOLDER [--processes 1 2] [--rounds 3] [--every 1]

Every row decodes all images of the folder, at 224 pixels and uncropped. "Decoding alone" opens each
file and computes its pixels in as many processes, and writes nothing: what the cores could give at
best. Rows alternate; the fastest of the rounds is reported. CPU time is that of the process that
writes the caches, and that of the processes that decode for it. The first does its work for one
block after the other, so its time per image bounds the rate, however many cores there are.

Also image caches of random bytes, and control over the page cache, for the other benchmarks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images import decoder_pool, image_cache_writer
from lattec_jax.data.images.decoder import Decoder
from lattec_jax.data.images.image_cache import ImageCache, open_image_caches
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.data.images.sources import files_at

_CHUNK_BYTES = 2**26
_BLOCK = 25  # images
PREPROCESS = Preprocess((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MAX_SIDE = 336
TRAINING = {"max_side": MAX_SIDE}


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


def decode(paths: Sequence[str]) -> float:
    """Decode a block of images for both caches, and forget them. Return the CPU seconds."""
    start, decoder, shape = time.process_time(), Decoder(), (MAX_SIDE, MAX_SIDE)
    settings = [({"preprocess": PREPROCESS.to_dict()}, PREPROCESS.size), (TRAINING, shape)]
    decoder.open([(os.devnull, 0, *setting) for setting in settings])
    decoder.decode(0, paths)
    decoder.close()
    return time.process_time() - start


@contextmanager
def timed(found: dict[str, float]) -> Iterator[None]:
    """Store wall-clock seconds, and CPU seconds of this process and of its ended children."""

    def cpu(who: int) -> float:
        usage = resource.getrusage(who)
        return usage.ru_utime + usage.ru_stime

    whos = {"own": resource.RUSAGE_SELF, "children": resource.RUSAGE_CHILDREN}
    start, before = time.perf_counter(), {name: cpu(who) for name, who in whos.items()}
    yield
    found["wall"] = time.perf_counter() - start
    found |= {name: cpu(who) - before[name] for name, who in whos.items()}


def decoding_alone(paths: Sequence[str], processes: int) -> dict[str, float]:
    """Return the times of `decode` in processes that run already."""
    found, blocks = {}, [paths[n : n + _BLOCK] for n in range(0, len(paths), _BLOCK)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(decode, blocks[: 4 * processes], chunksize=1)  # all have started
        with timed(found):
            seconds = sum(pool.imap_unordered(decode, blocks))
    return found | {"children": seconds}


def write_caches(split: Split, directory: Path, pool: Callable[[], Any]) -> dict[str, float]:
    """Return the times of writing both caches with such a pool of decoders."""
    found = {}
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        with (
            mock.patch.object(image_cache_writer, "decoder_pool", lambda images: pool()),
            timed(found),
        ):
            caches = open_image_caches(split, scratch, PREPROCESS, MAX_SIDE)
        if len(caches.evaluation.ids) != len(split.ids):
            raise RuntimeError(f"{len(caches.evaluation.failed)} images cannot be read")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="use every n-th image")
    parser.add_argument("--directory", type=Path, help="where the caches are written")
    values = parser.parse_args()
    paths = files_at(values.images)[:: values.every]
    split = Split(tuple(map(str, paths)), tuple(paths), None)
    names = [str(path) for path in paths]
    rows: dict[str, Callable[[], dict[str, float]]] = {
        f"threads, {decoder_pool.usable_cores()} cores": lambda: write_caches(
            split, values.directory, lambda: decoder_pool.DecoderThreads(len(paths))
        )
    }
    for count in values.processes:
        rows[f"processes: {count}"] = lambda count=count: write_caches(
            split, values.directory, lambda: decoder_pool.DecoderProcesses(count)
        )
        rows[f"decoding alone, processes: {count}"] = lambda count=count: decoding_alone(
            names, count
        )
    best: dict[str, dict[str, float]] = {}
    for _ in range(values.rounds):
        for row, run in rows.items():
            found = run()
            if row not in best or found["wall"] < best[row]["wall"]:
                best[row] = found
    print(f"{len(paths):,} images, load average {os.getloadavg()[0]:.1f}\n")
    print("| | images/s | seconds | CPU seconds, this process | CPU seconds, the others |")
    print("|---|---|---|---|---|")
    for row, times in best.items():
        cells = [f"{times[name]:.1f}" for name in ("wall", "own", "children")]
        print(f"| {row} | {len(paths) / times['wall']:,.0f} | {' | '.join(cells)} |")
    own = min(times["own"] for row, times in best.items() if row.startswith("processes"))
    print(
        f"\nThe process that writes spends {own / len(paths) * 1e6:.0f} µs per image, so at most "
        f"{len(paths) / own:,.0f} images/s."
    )


if __name__ == "__main__":
    main()
