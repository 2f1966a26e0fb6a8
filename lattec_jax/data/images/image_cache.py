"""Images decoded once into two image caches of uint8 pixels, which are read as memory maps.

The evaluation image cache holds what `Preprocess.pixels` gives, `[N, S, S, 3]`: S·S·3 bytes an
image (150,528 at 224). The training image cache holds whole images, `[N, H, W, 3]`, with their
aspect kept, the long side bounded, zeros below and to the right, and their sizes beside them: H·W·3
bytes an image, H and W being the largest height and width in the set (338,688 at most for a bound
of 336).

An image cache is a directory `<kind>-<fingerprint>` with `pixels.npy`, `sizes.npy` (training only)
and `index.json`. It is written under another name and moved into place when complete, so what
carries the name is whole. The fingerprint covers the ids, the files' sizes and times, and the
settings: when any of them changes another image cache is made, and the old directory may be deleted
by hand. The files' headers are read first, because H and W must be known; then each file is decoded
once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images.ordered_map import in_order
from lattec_jax.data.images.preprocess import (
    Preprocess,
    UnreadableImage,
    image_errors,
    image_size,
    open_image,
)
from lattec_jax.data.images.row_reader import RowReader
from lattec_jax.runtime import safe_read
from lattec_jax.runtime.errors import DataError, short_repr
from lattec_jax.runtime.files import partial_directory, remove_abandoned, replace_directory

_FORMAT = "lattec_jax-image-cache-1"
_LISTED = 10  # images that an error message names

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImageCachePaths:
    """The two image caches of a split, for `open_image_cache`."""

    evaluation: Path
    training: Path | None  # None for a split that is only evaluated


@dataclasses.dataclass(frozen=True)
class ImageCache:
    """An image cache on disk. Row i of every array belongs to `ids[i]`."""

    ids: tuple[str, ...]
    pixels: np.memmap  # [N, S, S, 3] or [N, H, W, 3] uint8
    sizes: np.ndarray | None  # [N, 2] int32 (height, width); None in an evaluation image cache
    failed: tuple[dict[str, str], ...]  # {"image": id, "reason": why it could not be read}

    def read(self, rows: np.ndarray) -> np.ndarray:
        """`pixels[rows]` in memory, faster than the memory map gives them in random order."""
        return self._reader(rows)

    @functools.cached_property
    def _reader(self) -> RowReader:
        return RowReader(self.pixels)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One image cache that is to be made."""

    path: Path
    settings: dict[str, Any]  # what, beside the files, its pixels depend on
    shape: tuple[int, int]  # height and width of a row
    convert: Callable[[Image.Image], np.ndarray]  # image -> [h, w, 3] uint8, at most `shape`
    sizes: bool  # whether the images' sizes are kept


def make_image_caches(
    split: Split,
    directory: str | os.PathLike[str],
    preprocess: Preprocess,
    max_side: int | None,
    max_unreadable_fraction: float = 0.01,
) -> ImageCachePaths:
    """Make what is missing of a split's evaluation and training image cache, decoding each file
    once.

    Images that cannot be read are left out of both and named with the reason in `index.json`.

    Args:
        split: the images.
        directory: the image caches go below it.
        preprocess: of the model; the evaluation image cache depends on it.
        max_side: bound on the long side of training images in pixels, which are never enlarged;
            0 for no bound; None for a split that is only evaluated and needs no training cache.
        max_unreadable_fraction: share of unreadable images above which nothing is kept.

    Returns:
        The paths for `open_image_cache`. Both image caches have the same ids.

    Raises:
        DataError: more unreadable images than allowed (the message lists the first ten), none
            that is readable, or too little space on the disk.
    """
    directory = Path(directory)
    settings: dict[str, dict[str, Any]] = {"evaluation": {"preprocess": preprocess.to_dict()}}
    if max_side is not None:
        settings["training"] = {"max_side": max_side}
    files = _digest_of_files(split)
    paths = {kind: _store_path(directory, kind, settings[kind], files) for kind in settings}

    def make(kinds: Iterable[str]) -> None:
        plans = [_plan(paths[k], k, settings[k], split, preprocess) for k in kinds]
        _make(split, directory, plans, max_unreadable_fraction)

    remove_abandoned(directory)
    missing = [kind for kind in paths if not paths[kind].is_dir()]
    if missing:
        make(missing)
    indices = {path: _read_index(path) for path in paths.values()}
    for path, index in indices.items():
        _check_ids(path, index, split)
    if len({tuple(index["ids"]) for index in indices.values()}) > 1:
        make(paths)  # made at different times, and a file was unreadable at one of them
    return ImageCachePaths(paths["evaluation"], paths.get("training"))


def open_image_cache(directory: str | os.PathLike[str]) -> ImageCache:
    """Open an image cache without reading its pixels.

    Raises:
        DataError: there is none, or it is damaged.
    """
    directory = Path(directory)
    index = _read_index(directory)
    ids = tuple(index["ids"])
    try:
        pixels = _map(directory / "pixels.npy", np.uint8, 4)
        sizes = None
        if (directory / "sizes.npy").exists():
            sizes = np.array(_map(directory / "sizes.npy", np.int32, 2))
        _check_arrays(index["settings"], pixels, sizes)
    except _DAMAGED as error:
        raise DataError(f"the image cache {directory} is damaged ({error}); {_REMAKE}") from error
    rows = min(len(pixels), len(pixels) if sizes is None else len(sizes))
    if rows < len(ids):
        raise DataError(
            f"the image cache {directory} is damaged: expected {len(ids)} rows, "
            f"found {rows}; {_REMAKE}"
        )
    return ImageCache(
        ids=ids, pixels=pixels[: len(ids)], sizes=sizes, failed=tuple(index["failed"])
    )


_REMAKE = "delete the directory and run the command again"


# What headers and settings that are damaged raise (found by damaging files at random).
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    SyntaxError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def _map(path: Path, dtype: type, axes: int) -> np.ndarray:
    """An array's memory map: nothing is allocated that the header may ask for."""
    safe_read.open_regular(path).close()
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != axes:
        found = getattr(array, "dtype", type(array).__name__), getattr(array, "shape", "")
        expected = f"{np.dtype(dtype)} with {axes} axes"
        raise ValueError(f"{path.name}: expected {expected}, found {' '.join(map(str, found))}")
    return array


def _check_arrays(
    settings: Mapping[str, Any], pixels: np.ndarray, sizes: np.ndarray | None
) -> None:
    """Raise ValueError where the arrays are not of an image cache with these settings."""
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
    if found != _FORMAT:
        raise DataError(
            f"expected an image cache of format {_FORMAT} in {directory}, "
            f"found {short_repr(found)}; {_REMAKE}"
        )
    if not _is_index(index):
        raise DataError(
            f"{directory / 'index.json'}: expected settings, a list of ids and a list of unreadable"
            f" images with reasons, found {short_repr(index)}; {_REMAKE}"
        )
    return index


def _is_index(index: Mapping[str, Any]) -> bool:
    ids, failed = index.get("ids"), index.get("failed")
    return (
        isinstance(index.get("settings"), dict)
        and isinstance(ids, list)
        and isinstance(failed, list)
        and all(isinstance(image, str) for image in ids)
        and all(
            isinstance(entry, dict)
            and entry.keys() == {"image", "reason"}
            and all(isinstance(value, str) for value in entry.values())
            for entry in failed
        )
    )


def _check_ids(directory: Path, index: Mapping[str, Any], split: Split) -> None:
    """Raise DataError for an index that does not name the split's images, each once."""
    found = [*index["ids"], *(entry["image"] for entry in index["failed"])]
    if sorted(found) != sorted(split.ids):
        raise DataError(
            f"the image cache {directory} is damaged: its index does not name the {len(split.ids)} "
            f"images of the split; {_REMAKE}"
        )


def _digest_of_files(split: Split) -> str:
    """Changes when an image is added, removed, renamed or written anew."""
    digest = hashlib.sha256()
    for image, path in zip(split.ids, split.paths, strict=True):
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{image}\0{state}\n".encode())
    return digest.hexdigest()


def _store_path(directory: Path, kind: str, settings: dict[str, Any], files: str) -> Path:
    text = json.dumps([_FORMAT, kind, settings, files], sort_keys=True)
    return directory / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _plan(
    path: Path,
    kind: str,
    settings: dict[str, Any],
    split: Split,
    preprocess: Preprocess,
) -> _Plan:
    """How to make an image cache of this kind; for a training image cache the files' headers are
    read."""
    if kind == "evaluation":
        return _Plan(path, settings, preprocess.size, preprocess.pixels, sizes=False)
    shape = _largest(split, settings["max_side"])
    convert = functools.partial(_whole, max_side=settings["max_side"], shape=shape)
    return _Plan(path, settings, shape, convert, sizes=True)


def _make(
    split: Split, directory: Path, plans: Sequence[_Plan], max_unreadable_fraction: float
) -> None:
    """Make image caches in one pass and put them in the place of what is there."""
    directory.mkdir(parents=True, exist_ok=True)
    _check_space(directory, plans, len(split.ids))
    with partial_directory(plans[0].path) as partial:
        made = partial / "made"
        try:
            failed = _write(split, plans, made)
        except OSError as error:
            raise DataError(
                f"the image caches cannot be written to {directory}: {error.strerror}; "
                "make room, or set --config.artifacts to another disk, and repeat the command"
            ) from error
        _check_failed(failed, len(split.ids), max_unreadable_fraction)
        for plan in plans:
            replace_directory(made / plan.path.name, plan.path)


def _write(split: Split, plans: Sequence[_Plan], made: Path) -> list[dict[str, str]]:
    """Decode every image and write the image caches below `made`. Returns what could not be
    read."""
    total = len(split.ids)
    sizes = np.zeros((total, 2), np.int32)
    ids, failed = [], []
    decode = functools.partial(_decode, converts=[plan.convert for plan in plans])
    with ExitStack() as stack:
        files = [stack.enter_context(_begin(made / plan.path.name, plan, total)) for plan in plans]
        results = stack.enter_context(closing(in_order(decode, split.paths)))
        bar = tqdm(results, total=total, desc="decoding images", unit="image", mininterval=0.5)
        for image, result in zip(split.ids, bar, strict=True):
            if isinstance(result, UnreadableImage):
                failed.append({"image": image, "reason": result.reason})
                continue
            for file, values, plan in zip(files, result, plans, strict=True):
                height, width = values.shape[:2]
                if plan.sizes:
                    sizes[len(ids)] = height, width
                file.write(_filled(values, plan.shape).data)
            ids.append(image)
        for file, plan in zip(files, plans, strict=True):
            # Zeros in the place of what could not be read: the header counts all.
            left = total - len(ids)
            file.truncate(file.tell() + left * plan.shape[0] * plan.shape[1] * 3)
            os.fsync(file.fileno())  # before the index can say that the rows are there
    for plan in plans:
        cache = made / plan.path.name
        if plan.sizes:
            np.save(cache / "sizes.npy", sizes[: len(ids)], allow_pickle=False)
        index = {"format": _FORMAT, "settings": plan.settings, "ids": ids, "failed": failed}
        (cache / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return failed


def _begin(cache: Path, plan: _Plan, total: int) -> BinaryIO:
    """The file of an image cache's pixels, with a header for `total` rows. Written as a stream:
    writing lets other threads run, which copying into a memory map does not."""
    cache.mkdir(parents=True)
    file = open(cache / "pixels.npy", "wb")  # noqa: SIM115
    header = {"descr": "|u1", "fortran_order": False, "shape": (total, *plan.shape, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _filled(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`[H, W, 3]` contiguous, with zeros below and to the right of a smaller image."""
    if values.shape[:2] == shape:
        return np.ascontiguousarray(values)
    row = np.zeros((*shape, 3), np.uint8)
    row[: values.shape[0], : values.shape[1]] = values
    return row


def _decode(
    path: Path, converts: Sequence[Callable[[Image.Image], np.ndarray]]
) -> list[np.ndarray] | UnreadableImage:
    """One image's pixels for each cache."""
    try:
        image = open_image(path)
        with image_errors(path):
            return [convert(image) for convert in converts]
    except UnreadableImage as error:
        return error


def _whole(image: Image.Image, max_side: int, shape: tuple[int, int]) -> np.ndarray:
    """The whole image as `[h, w, 3]` uint8, bounded by bicubic filtering with antialias."""
    height, width = _bounded(image.size, max_side)
    if height > shape[0] or width > shape[1]:  # larger than its header said
        factor = min(shape[0] / height, shape[1] / width)
        height, width = max(1, int(height * factor)), max(1, int(width * factor))
    image = image.convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _bounded(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) of an image of size (width, height) when its long side is bounded."""
    width, height = size
    factor = min(1.0, max_side / max(size)) if max_side else 1.0
    return max(1, round(height * factor)), max(1, round(width * factor))


def _largest(split: Split, max_side: int) -> tuple[int, int]:
    """The largest bounded height and width in the split, from the files' headers."""
    height = width = 1
    with closing(in_order(_header_size, split.paths)) as results:
        total = len(split.paths)
        for size in tqdm(results, total=total, desc="reading headers", unit="image", leave=False):
            if size is not None:
                bounded = _bounded(size, max_side)
                height, width = max(height, bounded[0]), max(width, bounded[1])
    return height, width


def _header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) as the header states it; None where decoding will fail as well."""
    try:
        size = image_size(path)
    except UnreadableImage:
        return None
    return size if min(size) > 0 else None


def _check_space(directory: Path, plans: Sequence[_Plan], count: int) -> None:
    """Ask first: a disk that fills up half-way would cost the work of decoding."""
    needed = sum(count * plan.shape[0] * plan.shape[1] * 3 for plan in plans)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"the image caches of {count} images need {needed / 1e9:.1f} GB, found "
            f"{free / 1e9:.1f} GB free in {directory}; make room, set "
            "--config.artifacts to another disk, or lower --config.image_cache.max_side"
        )


def _check_failed(
    failed: Sequence[dict[str, str]], total: int, max_unreadable_fraction: float
) -> None:
    if not failed:
        return
    if len(failed) <= max_unreadable_fraction * total and len(failed) < total:
        first = failed[0]
        log.warning(
            "%d of %d images cannot be read and are left out; the first: %s (%s). "
            "index.json in the image cache names them all",
            *(len(failed), total, first["image"], first["reason"]),
        )
        return
    lines = [f"\n  {entry['image']}: {entry['reason']}" for entry in failed[:_LISTED]]
    more = f"\n  and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
    raise DataError(
        f"{len(failed)} of {total} images cannot be read ({len(failed) / total:.1%}); "
        f"config.image_cache.max_unreadable_fraction allows "
        f"{max_unreadable_fraction:.1%}. Repair or remove them, or raise "
        f"--config.image_cache.max_unreadable_fraction:{''.join(lines)}{more}"
    )
