"""Write image caches (`lattec_jax.data.images.image_cache`): every image file is decoded once.

A cache is written to a temporary directory and moved into place when it is complete. The headers of
the files are read before, because the largest height and width decide the shape of the training
image cache.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.datasets.error_messages import list_lines
from lattec_jax.data.images.decoder import Layout, bounded
from lattec_jax.data.images.decoder_pool import Block, DecoderPool, decoder_pool
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import partial_directory, replace_directory
from lattec_jax.runtime.progress import progress_bar

FORMAT = "lattec_jax-image-cache-1"
_MAX_BLOCK = 64  # images
_MAX_BLOCK_BYTES = 2**22  # if it has several images

log = logging.getLogger(__name__)


def write_image_caches(
    split: Split,
    directory: Path,
    settings: Mapping[Path, Mapping[str, Any]],
    max_unreadable_fraction: float,
) -> None:
    """Decode the images of a split once and write the caches with these settings in `directory`,
    replacing existing ones. Raises as `open_image_caches` does."""
    with closing(decoder_pool(len(split.ids))) as pool:
        layouts = {path: _layout(values, split, pool) for path, values in settings.items()}
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
                failed = _write(split, written, pool)
            except OSError as error:
                raise DataError(
                    f"the image caches cannot be written to {directory}: {error.strerror}; "
                    "make room, or set --config.artifacts to another disk, and repeat the command"
                ) from error
            _check_failed(failed, len(split.ids), max_unreadable_fraction, next(iter(layouts)))
            for source, target in zip(written, layouts, strict=True):
                replace_directory(source, target)


def _layout(settings: Mapping[str, Any], split: Split, pool: DecoderPool) -> Layout:
    """Return the layout of an image cache. That of training images has the largest height and width
    in the split, for which the header of every file is read."""
    if "preprocess" in settings:
        return Layout(settings, tuple(settings["preprocess"]["size"]))
    sizes = [(1, 1)]
    bar = progress_bar(total=len(split.ids), desc="reading headers", unit="image", leave=False)
    with bar, closing(pool.map("header_sizes", _blocks(split, pool, 1))) as results:
        for _, found in results:
            sizes += [bounded(size, settings["max_side"]) for size in found if size is not None]
            bar.update(len(found))
    height, width = np.max(sizes, axis=0).tolist()
    return Layout(settings, (height, width))


def _blocks(split: Split, pool: DecoderPool, image_bytes: int) -> Generator[Block]:
    """Yield the images in blocks whose results take `image_bytes` for each image."""
    total = len(split.paths)
    size = max(1, min(_MAX_BLOCK, _MAX_BLOCK_BYTES // image_bytes, total // pool.blocks))
    for block, start in enumerate(range(0, total, size)):
        yield block, [os.fspath(path) for path in split.paths[start : start + size]]


def _write(split: Split, layouts: Mapping[Path, Layout], pool: DecoderPool) -> list[dict[str, str]]:
    """Decode every image and write the image caches. Return the unreadable images."""
    total = len(split.ids)
    ids, failed, sizes, images = [], [], [], iter(split.ids)
    with ExitStack() as stack:
        files = [
            stack.enter_context(_create_pixels(directory, layout, total))
            for directory, layout in layouts.items()
        ]
        pool.open(
            [
                (str(file.name), file.tell(), layout.settings, layout.shape)
                for file, layout in zip(files, layouts.values(), strict=True)
            ]
        )
        image_bytes = sum(layout.entry_bytes for layout in layouts.values())
        bar = stack.enter_context(progress_bar(total=total, desc="decoding images", unit="image"))
        decoded = pool.map("decode", _blocks(split, pool, image_bytes))
        for block, (writer, results) in enumerate(stack.enter_context(closing(decoded))):
            writer.write(block, len(ids))
            for result in results:
                if isinstance(result, str):
                    failed.append({"image": next(images), "reason": result})
                else:
                    ids.append(next(images))
                    sizes.append(result)
            bar.update(len(results))
        pool.finish()
        for file in files:
            os.fsync(file.fileno())  # before the index states that the pixels are there
    for number, (directory, layout) in enumerate(layouts.items()):
        if layout.stores_sizes:
            stored = np.array([size[number] for size in sizes], np.int32).reshape(-1, 2)
            np.save(directory / "sizes.npy", stored, allow_pickle=False)
        index = {"format": FORMAT, "settings": layout.settings, "ids": ids, "failed": failed}
        (directory / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return failed


def _create_pixels(directory: Path, layout: Layout, total: int) -> BinaryIO:
    """Create `pixels.npy` with its header, for all images: zeros at the end stand for the
    unreadable ones."""
    directory.mkdir(parents=True)
    file = open(directory / "pixels.npy", "wb")  # noqa: SIM115
    header = {"descr": "|u1", "fortran_order": False, "shape": (total, *layout.shape, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    file.truncate(file.tell() + total * layout.entry_bytes)
    return file


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
