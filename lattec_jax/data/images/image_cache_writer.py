"""Write image caches (`lattec_jax.data.images.image_cache`): every image file is decoded once.

A cache is written to a temporary directory and moved into place when it is complete. The headers of
the files are read before, because the largest height and width decide the shape of the training
image cache.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.datasets.error_messages import list_lines
from lattec_jax.data.images.preprocess import (
    UnreadableImage,
    image_errors,
    image_size,
    open_image,
)
from lattec_jax.data.prefetch import prefetch
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import partial_directory, replace_directory
from lattec_jax.runtime.progress import progress_bar

FORMAT = "lattec_jax-image-cache-1"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What an image cache stores for each image."""

    settings: dict[str, Any]  # what the pixels depend on, besides the files
    shape: tuple[int, int]  # height and width of an entry
    convert: Callable[[Image.Image], np.ndarray]  # image -> [h, w, 3] uint8, at most `shape`
    stores_sizes: bool

    @property
    def entry_bytes(self) -> int:
        """Bytes per image."""
        return self.shape[0] * self.shape[1] * 3


def training_layout(settings: dict[str, Any], split: Split) -> Layout:
    """The layout of a training image cache: the uncropped image, its long side at most
    `settings["max_side"]` pixels (0: no bound). Reads the header of every file."""
    max_side = settings["max_side"]

    def bounded(size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) -> (height, width) with the long side bounded."""
        width, height = size
        factor = min(1.0, max_side / max(size)) if max_side else 1.0
        return max(1, round(height * factor)), max(1, round(width * factor))

    with closing(prefetch(_header_size, split.paths)) as results:
        bar = progress_bar(
            results, total=len(split.ids), desc="reading headers", unit="image", leave=False
        )
        sizes = np.array([(1, 1), *(bounded(size) for size in bar if size is not None)])
    shape = int(sizes[:, 0].max()), int(sizes[:, 1].max())

    def convert(image: Image.Image) -> np.ndarray:
        height, width = bounded(image.size)
        if height > shape[0] or width > shape[1]:  # larger than its header stated
            factor = min(shape[0] / height, shape[1] / width)
            height, width = max(1, int(height * factor)), max(1, int(width * factor))
        # With antialiasing.
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))

    return Layout(settings, shape, convert, stores_sizes=True)


def write_image_caches(
    split: Split,
    directory: Path,
    layouts: Mapping[Path, Layout],
    max_unreadable_fraction: float,
) -> None:
    """Decode the images of a split once and write them to the caches of `layouts` in `directory`,
    replacing existing ones. Raises as `open_image_caches` does."""
    directory.mkdir(parents=True, exist_ok=True)
    needed = len(split.ids) * sum(layout.entry_bytes for layout in layouts.values())
    free = shutil.disk_usage(directory).free
    if needed > free:  # now, not when the disk is full
        raise DataError(
            f"the image caches of {len(split.ids)} images need {needed / 1e9:.1f} GB, found "
            f"{free / 1e9:.1f} GB free in {directory}; make room, set "
            "--config.artifacts to another disk, or lower --config.image_cache.max_side"
        )
    with partial_directory(next(iter(layouts))) as partial:
        written = {partial / "made" / path.name: layout for path, layout in layouts.items()}
        try:
            failed = _write(split, written)
        except OSError as error:
            raise DataError(
                f"the image caches cannot be written to {directory}: {error.strerror}; "
                "make room, or set --config.artifacts to another disk, and repeat the command"
            ) from error
        _check_failed(failed, len(split.ids), max_unreadable_fraction, next(iter(layouts)))
        for source, target in zip(written, layouts, strict=True):
            replace_directory(source, target)


def _write(split: Split, layouts: Mapping[Path, Layout]) -> list[dict[str, str]]:
    """Decode every image and write the image caches. Return the unreadable images."""
    total = len(split.ids)
    sizes = np.zeros((total, 2), np.int32)
    ids, failed = [], []

    def decode(path: Path) -> list[np.ndarray] | UnreadableImage:
        try:
            image = open_image(path)
            with image_errors(path):
                return [layout.convert(image) for layout in layouts.values()]
        except UnreadableImage as error:
            return error

    with ExitStack() as stack:
        files = [
            stack.enter_context(_create_pixels(directory, layout, total))
            for directory, layout in layouts.items()
        ]
        results = stack.enter_context(closing(prefetch(decode, split.paths)))
        bar = progress_bar(results, total=total, desc="decoding images", unit="image")
        for image, result in zip(split.ids, bar, strict=True):
            if isinstance(result, UnreadableImage):
                failed.append({"image": image, "reason": result.reason})
                continue
            for file, pixels, layout in zip(files, result, layouts.values(), strict=True):
                if layout.stores_sizes:
                    sizes[len(ids)] = pixels.shape[:2]
                # [h, w, 3] -> [H, W, 3], with zeros at the bottom and on the right
                rows, columns = np.subtract(layout.shape, pixels.shape[:2])
                file.write(np.pad(pixels, ((0, rows), (0, columns), (0, 0))).data)
            ids.append(image)
        for file, layout in zip(files, layouts.values(), strict=True):
            # The header counts all images: zeros at the end stand for the unreadable ones.
            file.truncate(file.tell() + len(failed) * layout.entry_bytes)
            os.fsync(file.fileno())  # before the index states that the pixels are there
    for directory, layout in layouts.items():
        if layout.stores_sizes:
            np.save(directory / "sizes.npy", sizes[: len(ids)], allow_pickle=False)
        index = {"format": FORMAT, "settings": layout.settings, "ids": ids, "failed": failed}
        (directory / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return failed


def _create_pixels(directory: Path, layout: Layout, total: int) -> BinaryIO:
    """Create `pixels.npy` with its header. The pixels are written as a stream: writing releases
    Python's lock, which copying into a memory map does not."""
    directory.mkdir(parents=True)
    file = open(directory / "pixels.npy", "wb")  # noqa: SIM115
    header = {"descr": "|u1", "fortran_order": False, "shape": (total, *layout.shape, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _header_size(path: Path) -> tuple[int, int] | None:
    """(width, height) as the header states it, None for a file that decoding will refuse too."""
    try:
        size = image_size(path)
    except UnreadableImage:
        return None
    return size if min(size) > 0 else None


def _check_failed(
    failed: Sequence[dict[str, str]], total: int, max_unreadable_fraction: float, directory: Path
) -> None:
    """Warn of unreadable images; raise DataError for too many. `directory`: of an image cache."""
    if not failed:
        return
    if len(failed) <= max_unreadable_fraction * total and len(failed) < total:
        log.warning(
            "%d of %d images cannot be read and are left out; the first: %s (%s). "
            "%s lists them all",
            *(len(failed), total, failed[0]["image"], failed[0]["reason"]),
            directory / "index.json",
        )
        return
    listed = list_lines([f"{entry['image']}: {entry['reason']}" for entry in failed], "  ")
    raise DataError(
        f"{len(failed)} of {total} images cannot be read ({len(failed) / total:.1%}); "
        f"config.image_cache.max_unreadable_fraction allows "
        f"{max_unreadable_fraction:.1%}. Repair or remove them, or raise "
        f"--config.image_cache.max_unreadable_fraction:{listed}"
    )
