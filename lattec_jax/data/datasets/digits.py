"""The demo's target domain: scikit-learn's handwritten digits, as PNG files.

1,797 images of 8 × 8 pixels in 17 gray levels, light ink on a dark ground: the test part of
"Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, CC BY 4.0), `sklearn.datasets.load_digits`.

The split is fixed: of each class, the first 100 images of a permutation by NumPy's `default_rng(0)`
are the training part (1,000 images) and the remaining ones the test part (797). So labels are used
to balance the training images. scikit-learn does not state who wrote which digit, so both parts
have digits by the same writers.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.runtime.config import dataset_dir
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import partial_directory, remove_abandoned

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROTOCOL = "100 of each of scikit-learn's digits, inductive, last step"

_SPLIT_SEED = 0
_TRAINING_PER_CLASS = 100


def read_digits(config: ConfigDict) -> Dataset:
    """Return the demo's data set, whose images are written to `dataset_dir(config) / "images"`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "expected scikit-learn, which contains the demo's handwritten digits, found none; "
            "pip install scikit-learn"
        ) from error
    digits: Any = load_digits()  # declared as a tuple, which it is with return_X_y only
    # [N, 8, 8]: 17 gray levels, 0 to 16, scaled to 0 to 255.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    folder = dataset_dir(config) / "images"
    train, test = split_indices(labels)
    parts: dict[str, np.ndarray] = {"train": train, "test": test}
    splits = {
        part: Split.from_entries(
            [(f"{part}/{index:04d}.png", labels[index], None) for index in indices], folder
        )
        for part, indices in parts.items()
    }
    return Dataset(
        name=config.dataset.name,
        class_names=CLASS_NAMES,
        protocol=PROTOCOL,
        locations=(("images, written at first use", folder),),
        write_images=functools.partial(_write, folder, images, parts),
        train=splits["train"],
        test=splits["test"],
    )


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices of the training and of the test images, from `[N]` labels."""
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[:_TRAINING_PER_CLASS]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def _write(folder: Path, images: np.ndarray, parts: dict[str, np.ndarray]) -> None:
    """Write the PNG files once. One rename creates `folder` when all are written."""
    remove_abandoned(folder.parent, folder.name)
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with partial_directory(folder) as unfinished:
        new = unfinished / "new"
        for part, indices in parts.items():
            (new / part).mkdir(parents=True)
            for index in indices:
                Image.fromarray(images[index]).save(new / part / f"{index:04d}.png")
        try:
            os.replace(new, folder)
        except OSError:  # another process has written the same files first
            if not folder.is_dir():
                raise
