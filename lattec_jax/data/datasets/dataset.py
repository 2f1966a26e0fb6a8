"""A data set: class names, and which images are for training and for testing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lattec_jax.data.datasets import class_names
from lattec_jax.runtime.errors import DataError


@dataclasses.dataclass(frozen=True)
class Split:
    """N images. `ids` are POSIX paths relative to the data root, unique within the split."""

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray | None  # [N] int32, None where they are not known
    source: str = ""  # what names the images, for messages

    @classmethod
    def of(cls, rows: Sequence[tuple[str, int, object]], folder: Path, source: str) -> Split:
        """The images of rows (id, label, anything), ids being paths below `folder`."""
        return cls(
            ids=tuple(image for image, _, _ in rows),
            paths=tuple(folder / image for image, _, _ in rows),
            labels=np.array([label for _, label, _ in rows], np.int32),
            source=source,
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training labels, where there are any, serve the oracle and analysis only."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    protocol: str  # how the test metrics come about, for results.json
    synonyms: tuple[tuple[str, ...], ...] = ()  # further names of each class; (): none has any
    names_source: str = ""  # what names the classes, for messages
    places: tuple[tuple[str, Path], ...] = ()  # what was read, and where: ("split file", path)
    # Writes the images that are not on disk yet; None where they are the user's own files.
    write_images: Callable[[], None] | None = None

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """All names of each class, the display name (`class_names`) first."""
        further = self.synonyms or ((),) * len(self.class_names)
        return tuple((name, *more) for name, more in zip(self.class_names, further, strict=True))

    def on_disk(self) -> Dataset:
        """This data set, after its images were written where that was to be done."""
        if self.write_images is not None:
            self.write_images()
        return self


def fraction_count(images: int, fraction: float) -> int:
    """How many of `images` training images a share of them is: at least 2 of them."""
    return min(images, max(2, round(fraction * images)))


def fraction_protocol(protocol: str, images: int, of: int) -> str:
    """The protocol of a run on `images` of the `of` training images."""
    return f"{protocol}, {images:,} of {of:,} training images"


def take_fraction(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set with a share of its training images (Figure 6), chosen by a hash of seed and id.

    A smaller share lies inside a larger one, and labels take no part.
    """
    if fraction == 1:
        return dataset
    train = dataset.train
    order = sorted(
        range(len(train.ids)),
        key=lambda n: hashlib.sha256(f"share {seed} {train.ids[n]}".encode()).digest(),
    )
    rows = sorted(order[: fraction_count(len(order), fraction)])
    part = dataclasses.replace(
        train,
        ids=tuple(train.ids[row] for row in rows),
        paths=tuple(train.paths[row] for row in rows),
        labels=None if train.labels is None else train.labels[rows],
    )
    protocol = fraction_protocol(dataset.protocol, len(rows), len(order))
    return dataclasses.replace(dataset, train=part, protocol=protocol)


def check(dataset: Dataset) -> None:
    """Raise DataError where a data set breaks what everything else relies on.

    At least two classes, no name twice or with control characters; ids unique within a split; one
    label an image, each of an existing class; no image in both splits.
    """
    names = dataset.class_names
    where = f"{dataset.names_source or dataset.name}: "
    if len(names) < 2:
        raise DataError(
            f"{where}expected at least two class names, found {len(names)}: "
            f"{', '.join(names) or 'none'}"
        )
    every = Counter(name for own in dataset.names for name in own)
    repeated = [name for name, count in every.items() if count > 1 or not name.strip()]
    if repeated:
        raise DataError(
            f"{where}expected class names that differ, found {repeated[0]!r} twice or empty"
        )
    for name in every:
        class_names.check_characters(name, dataset.names_source or dataset.name)
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        if split is not None:
            _check_split(f"{split.source or dataset.name}: ", part, split, len(names))
    if dataset.test is not None:
        _check_apart(dataset.train, dataset.test)


def _check_split(where: str, part: str, split: Split, classes: int) -> None:
    if not split.ids:
        raise DataError(f"{where}expected images in the {part} part, found none")
    image, count = Counter(split.ids).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{where}the {part} part names the image {image!r} {count} times; name it once"
        )
    if split.labels is None:
        return
    if len(split.labels) != len(split.ids) or not all(0 <= n < classes for n in split.labels):
        raise DataError(
            f"{where}expected {len(split.ids)} labels from 0 to {classes - 1} in the {part} part, "
            f"found {len(split.labels)} from {min(split.labels)} to {max(split.labels)}"
        )


def _check_apart(train: Split, test: Split) -> None:
    """The protocol is inductive: training never sees a test image, by whatever path."""
    trained = {
        os.path.realpath(path): image for image, path in zip(train.ids, train.paths, strict=True)
    }
    both = [
        image
        for image, path in zip(test.ids, test.paths, strict=True)
        if os.path.realpath(path) in trained
    ]
    if both:
        named = [split.source or "the reader of config.dataset.kind" for split in (train, test)]
        raise DataError(
            f"{len(both)} of {len(test.ids)} test images are training images as well, the "
            f"first: {both[0]!r}; training must not see test images. Take them out of one of the "
            f"two parts, which are named by {' and '.join(dict.fromkeys(named))}"
        )
