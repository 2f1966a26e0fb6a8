"""Image caches: the decoded uint8 pixels of a split, read as memory maps.

The evaluation image cache holds the result of `Preprocess.pixels`, `[N, S, S, 3]`: S·S·3 bytes per
image (150,528 at 224). The training image cache holds uncropped images, `[N, H, W, 3]`, with their
aspect ratio, a bounded long side, zero padding at the bottom and on the right, and their sizes:
H·W·3 bytes per image, H and W being the largest height and width in the split (at most 338,688 for
a bound of 336).

An image cache is a directory `<kind>-<fingerprint>` with `pixels.npy`, `sizes.npy` (training only)
and `index.json`. The fingerprint covers the ids, the sizes and times of the files, and the
settings: when any of them changes, another image cache is written, and the old directory may be
deleted by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tokenize
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images.image_cache_writer import FORMAT, write_image_caches
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.runtime import safe_read
from lattec_jax.runtime.errors import DataError, short_repr
from lattec_jax.runtime.files import remove_abandoned

THREADS = 16  # concurrent reads
_REMAKE = "delete the directory and run the command again"
# What damaged headers and settings raise (found by damaging files at random).
_DAMAGED = (
    OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, OverflowError, RecursionError,
    MemoryError, tokenize.TokenError,
)  # fmt: skip


class ParallelReader:
    """`array[indices]` of a memory map. Like the map, it keeps the file open as long as it lives.

    A memory map that is not in memory yet is read page by page, and each page fault waits for the
    one before. Reading entries as a whole, many at a time, keeps the disk busy
    (`python -m benchmarks.streaming` measures both).

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


@dataclasses.dataclass(frozen=True)
class ImageCache:
    """An open image cache. Entry i of every array belongs to `ids[i]`."""

    ids: tuple[str, ...]
    pixels: np.memmap  # [N, S, S, 3] or [N, H, W, 3] uint8
    sizes: np.ndarray | None  # [N, 2] int32 (height, width); None in an evaluation image cache
    failed: tuple[dict[str, str], ...]  # {"image": id, "reason": why it could not be read}

    @property
    def directory(self) -> Path:
        """The directory of the cache; its name tells apart different files and settings."""
        return Path(str(self.pixels.filename)).parent

    @functools.cached_property
    def read(self) -> ParallelReader:
        """`read(indices)` is `pixels[indices]`, faster than the memory map in random order."""
        return ParallelReader(self.pixels)


class ImageCaches(NamedTuple):
    """The image caches of a split, which hold the same images."""

    evaluation: ImageCache
    training: ImageCache | None  # None for a split that is only evaluated


def open_image_caches(
    split: Split,
    directory: str | os.PathLike[str],
    preprocess: Preprocess,
    max_side: int | None,
    max_unreadable_fraction: float = 0.01,
) -> ImageCaches:
    """Open the image caches of a split. Those that are missing are written first.

    Unreadable images are left out of both and listed with the reason in `index.json`. Raise
    DataError if none is readable, the disk too small, or a cache damaged.

    Args:
        directory: parent directory of the image caches.
        max_side: upper bound on the long side of training images in pixels (they are never
            enlarged); 0 for no bound; None for a split that needs no training cache.
        max_unreadable_fraction: with more unreadable images than this, nothing is written, and
            DataError lists the first ten.
    """
    directory = Path(directory)
    settings: dict[str, dict[str, Any]] = {"evaluation": {"preprocess": preprocess.to_dict()}}
    if max_side is not None:
        settings["training"] = {"max_side": max_side}
    files, paths = _files_digest(split), {}
    for kind in settings:
        text = json.dumps([FORMAT, kind, settings[kind], files], sort_keys=True)
        paths[kind] = directory / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def write(kinds: Iterable[str]) -> None:
        wanted = {paths[kind]: settings[kind] for kind in kinds}
        write_image_caches(split, directory, wanted, max_unreadable_fraction)

    remove_abandoned(directory)
    if missing := [kind for kind, path in paths.items() if not path.is_dir()]:
        write(missing)
    caches = {kind: open_image_cache(path, split) for kind, path in paths.items()}
    if len({cache.ids for cache in caches.values()}) > 1:
        # They were written at different times, and a file was unreadable at one of them.
        write(paths)
        caches = {kind: open_image_cache(path, split) for kind, path in paths.items()}
    return ImageCaches(caches["evaluation"], caches.get("training"))


def open_image_cache(directory: str | os.PathLike[str], split: Split | None = None) -> ImageCache:
    """Open one image cache without reading its pixels.

    Raise DataError if it does not exist, is damaged, or is not of this split (None: of any).
    """
    directory = Path(directory)
    index = _read_index(directory)
    ids, failed = tuple(index["ids"]), tuple(index["failed"])
    if split is not None:
        found = [*ids, *(entry["image"] for entry in failed)]
        if sorted(found) != sorted(split.ids):
            raise DataError(
                f"the image cache {directory} is damaged: its index does not name the "
                f"{len(split.ids)} images of the split; {_REMAKE}"
            )
    try:
        pixels, sizes = _memory_map(directory / "pixels.npy", np.uint8, 4), None
        if (directory / "sizes.npy").exists():
            sizes = np.array(_memory_map(directory / "sizes.npy", np.int32, 2))
        _check_arrays(index["settings"], pixels, sizes)
    except _DAMAGED as error:
        raise DataError(f"the image cache {directory} is damaged ({error}); {_REMAKE}") from error
    count = len(pixels) if sizes is None else min(len(pixels), len(sizes))
    if count < len(ids):
        raise DataError(
            f"the image cache {directory} is damaged: expected {len(ids)} images, found {count}; "
            f"{_REMAKE}"
        )
    return ImageCache(ids, cast(np.memmap, pixels[: len(ids)]), sizes, failed)


def _memory_map(path: Path, dtype: type, dimensions: int) -> np.memmap:
    """Map an array into memory; nothing is allocated, whatever a damaged header asks for."""
    safe_read.open_regular(path).close()
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.ndim != dimensions:
        found = getattr(array, "dtype", type(array).__name__), getattr(array, "shape", "")
        expected = f"{np.dtype(dtype)} with {dimensions} dimensions"
        raise ValueError(f"{path.name}: expected {expected}, found {' '.join(map(str, found))}")
    return array


def _check_arrays(
    settings: Mapping[str, Any], pixels: np.ndarray, sizes: np.ndarray | None
) -> None:
    """Raise ValueError unless the arrays belong to an image cache with these settings."""
    height, width, channels = pixels.shape[1:]
    preprocess = settings.get("preprocess")
    expected = [height, width] if preprocess is None else preprocess["size"]
    if [height, width] != list(expected) or channels != 3:
        raise ValueError(f"expected pixels of the shape {[*expected, 3]}, found {pixels.shape[1:]}")
    if sizes is not None and (
        sizes.shape[1] != 2 or (sizes < 1).any() or (sizes > (height, width)).any()
    ):
        raise ValueError(f"expected sizes from (1, 1) to ({height}, {width})")


def _read_index(directory: Path) -> dict[str, Any]:
    try:
        index = safe_read.read_json(directory / "index.json", safe_read.MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"no readable image cache in {directory} ({error}); {_REMAKE}") from error
    found = index.get("format") if isinstance(index, dict) else type(index).__name__
    if found != FORMAT:
        raise DataError(
            f"expected an image cache of format {FORMAT} in {directory}, "
            f"found {short_repr(found)}; {_REMAKE}"
        )
    match index:
        case {"settings": dict(), "ids": list(ids), "failed": list(failed)}:
            types = [isinstance(e, dict) and {key: type(e[key]) for key in e} for e in failed]
            if all(isinstance(image, str) for image in ids) and all(
                found == {"image": str, "reason": str} for found in types
            ):
                return index
    raise DataError(
        f"{directory / 'index.json'}: expected settings, a list of ids and a list of unreadable"
        f" images with reasons, found {short_repr(index)}; {_REMAKE}"
    )


def _files_digest(split: Split) -> str:
    """Return a digest that changes when an image is added, removed, renamed or modified."""
    digest = hashlib.sha256()
    for image, path in zip(split.ids, split.paths, strict=True):
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{image}\0{state}\n".encode())
    return digest.hexdigest()
