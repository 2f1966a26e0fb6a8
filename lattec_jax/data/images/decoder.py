"""Decode blocks of images into the files of image caches.

A `Decoder` runs in the process that writes the caches, or in a process of its own
(`lattec_jax.data.images.decoder_pool`): then its methods are called by messages, so their arguments
and results are JSON values. Imports little: every such process imports it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lattec_jax.data.images.preprocess import (
    Preprocess,
    UnreadableImage,
    image_errors,
    image_size,
    open_image,
)

# The sizes of an image in each cache, (height, width), or the reason why it cannot be read.
Result = Sequence[Sequence[int]] | str


@dataclasses.dataclass(frozen=True)
class Layout:
    """What an image cache stores for each image."""

    # What the pixels depend on besides the files; see `open_image_caches`.
    settings: Mapping[str, Any]
    shape: tuple[int, int]  # height and width of an entry

    @property
    def stores_sizes(self) -> bool:
        """Whether images are smaller than their entries."""
        return "max_side" in self.settings

    @property
    def entry_bytes(self) -> int:
        """Bytes per image."""
        return self.shape[0] * self.shape[1] * 3

    def convert(self, image: Image.Image) -> np.ndarray:
        """Return the `[h, w, 3]` uint8 pixels to store, at most of the size `shape`."""
        if not self.stores_sizes:
            return Preprocess(**self.settings["preprocess"]).pixels(image)
        height, width = bounded(image.size, self.settings["max_side"])
        if height > self.shape[0] or width > self.shape[1]:  # larger than its header stated
            factor = min(self.shape[0] / height, self.shape[1] / width)
            height, width = max(1, int(height * factor)), max(1, int(width * factor))
        # With antialiasing.
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def bounded(size: Sequence[int], max_side: int) -> tuple[int, int]:
    """(width, height) -> (height, width) with the long side at most `max_side`; 0: no bound."""
    width, height = size
    factor = min(1.0, max_side / max(size)) if max_side else 1.0
    return max(1, round(height * factor)), max(1, round(width * factor))


class Decoder:
    """Reads headers, decodes blocks of images, and writes them to files that exist already.

    A block is written in a second call, because its position in the files depends on how many
    images of the blocks before it are readable. Until then it is held in memory.
    """

    def __init__(self) -> None:
        self._layouts: list[Layout] = []
        self._files: list[tuple[int, int]] = []  # descriptor, position of the first entry
        self._blocks: dict[int, list[np.ndarray]] = {}

    def header_sizes(self, block: int, paths: Sequence[str]) -> list[Sequence[int] | None]:
        """Return the (width, height) that the headers state; None for a file that `decode` will
        refuse too."""
        return [_header_size(path) for path in paths]

    def open(self, files: Sequence[Sequence[Any]]) -> None:
        """Set the files to write to: (path, position of the first entry, settings, shape)."""
        for path, start, settings, shape in files:
            self._layouts.append(Layout(settings, tuple(shape)))
            self._files.append((os.open(path, os.O_WRONLY | os.O_CLOEXEC), start))

    def decode(self, block: int, paths: Sequence[str]) -> list[Result]:
        """Decode a block of images for `write`."""
        # Zeros stay at the bottom and on the right of smaller images.
        arrays = [np.zeros((len(paths), *a.shape, 3), np.uint8) for a in self._layouts]
        results, count = [], 0
        for path in paths:
            try:
                image = open_image(path)
                with image_errors(path):
                    converted = [layout.convert(image) for layout in self._layouts]
            except UnreadableImage as error:
                results.append(error.reason)
                continue
            for array, pixels in zip(arrays, converted, strict=True):
                array[count, : pixels.shape[0], : pixels.shape[1]] = pixels
            results.append([pixels.shape[:2] for pixels in converted])
            count += 1
        self._blocks[block] = [array[:count] for array in arrays]
        return results

    def write(self, block: int, row: int) -> None:
        """Write the readable images of a decoded block from this entry on."""
        arrays = self._blocks.pop(block)
        for (file, start), layout, array in zip(self._files, self._layouts, arrays, strict=True):
            data, position = array.reshape(-1).data, start + row * layout.entry_bytes
            while data:
                written = os.pwrite(file, data, position)
                data, position = data[written:], position + written

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files:
            os.close(file)
        self._files = []


def _header_size(path: str) -> tuple[int, int] | None:
    try:
        size = image_size(path)
    except UnreadableImage:
        return None
    return size if min(size) > 0 else None
