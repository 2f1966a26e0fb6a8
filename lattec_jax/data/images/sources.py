"""What users pass as images: paths, folders, patterns, PIL images and arrays. Imports no JAX."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import numpy as np
from PIL import Image

from lattec_jax.data.datasets.image_files import SUFFIXES, list_files, warn_of_other_formats
from lattec_jax.runtime.errors import DataError

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


def image_or_path(item: object, position: int) -> Image.Image | str | os.PathLike[str]:
    """Return an array as an image, and images and paths as they are.

    Raises:
        DataError: the item is something else, or an array of another shape or type.
    """
    if isinstance(item, np.ndarray):
        gray_or_rgb = item.ndim == 2 or (item.ndim == 3 and item.shape[2] == 3)
        if item.dtype != np.uint8 or not gray_or_rgb or 0 in item.shape:
            raise DataError(
                f"image {position}: expected an array [H, W, 3] or [H, W] of uint8, found "
                f"{list(item.shape)} of {item.dtype}; scale values to 0 to 255 and convert them"
            )
        return Image.fromarray(item)
    if not isinstance(item, (str, os.PathLike, Image.Image)):
        raise DataError(
            f"image {position}: expected a path, a PIL image or a NumPy array, found "
            f"{type(item).__name__}"
        )
    return item


def is_collection(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder, or a pattern such as `photos/*.jpg`."""
    return os.path.isdir(os.path.expanduser(path)) or is_pattern(path)


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has wildcards and no file has that name."""
    return glob.has_magic(os.fspath(path)) and not os.path.exists(path)


def files_at(path: str | os.PathLike[str]) -> list[Path]:
    """Return the images in a folder (and its sub-folders) or of a pattern; warn of other files.

    An image is known by its suffix. In a pattern, `**` stands for any sub-folders. Hidden files are
    skipped.

    Raises:
        DataError: there is no image.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if os.path.isdir(expanded):
        where, (images, others) = f"below {expanded}", list_files(Path(expanded))
    else:
        where = f"that {os.fspath(path)!r} matches"
        files = [Path(p) for p in glob.glob(expanded, recursive=True) if os.path.isfile(p)]
        files = [file for file in files if file.name[0] != "."]
        images = [file for file in files if file.name.lower().endswith(SUFFIXES)]
        others = [file for file in files if not file.name.lower().endswith(SUFFIXES)]
    if not images:
        found = f", but {len(others)} other files, such as {min(others)}" if others else ""
        raise DataError(
            f"no images {where} (looked in {Path.cwd()} for {' '.join(SUFFIXES)}){found}"
        )
    warn_of_other_formats(others)
    return sorted(images)
