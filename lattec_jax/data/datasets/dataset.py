"""A data set: class names, training images and test images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lattec_jax.data.datasets import class_names
from lattec_jax.runtime.errors import DataError

Entry = tuple[str, int, Any]  # of an image: path below the image folder, label, anything else


@dataclasses.dataclass(frozen=True)
class Split:
    """N training or test images."""

    ids: tuple[str, ...]  # POSIX paths relative to the data root, unique within the split
    paths: tuple[Path, ...]
    labels: np.ndarray | None  # [N] int32; None: unknown
    source: str = ""  # the file or setting that lists the images, for messages

    @classmethod
    def from_entries(cls, entries: Sequence[Entry], folder: Path, source: str = "") -> Split:
        """Make a split of labeled images below `folder`."""
        return cls(
            ids=tuple(image for image, _, _ in entries),
            paths=tuple(folder / image for image, _, _ in entries),
            labels=np.array([label for _, label, _ in entries], np.int32),
            source=source,
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set of C classes.

    Training labels, if known, are used by the oracle and for analysis only.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split | None
    protocol: str  # how the test metrics are obtained, for results.json
    synonyms: tuple[tuple[str, ...], ...] = ()  # further names of each class; (): no class has any
    names_source: str = ""  # the file that lists the classes, for messages
    locations: tuple[tuple[str, Path], ...] = ()  # of its files: ("split file", path)
    # Writes the images that are not on disk yet; None: they are the user's own files.
    write_images: Callable[[], None] | None = None

    @property
    def class_synonyms(self) -> tuple[tuple[str, ...], ...]:
        """All names of each class, the display name first."""
        further = self.synonyms or ((),) * len(self.class_names)
        return tuple((name, *more) for name, more in zip(self.class_names, further, strict=True))

    def on_disk(self) -> Dataset:
        """Write images that are not on disk yet; return this data set."""
        if self.write_images is not None:
            self.write_images()
        return self


def fraction_count(images: int, fraction: float) -> int:
    """Return the number of training images in a fraction of `images`, at least 2."""
    return min(images, max(2, round(fraction * images)))


def fraction_protocol(protocol: str, images: int, total: int) -> str:
    """Return the protocol of a run on `images` of `total` training images."""
    return f"{protocol}, {images:,} of {total:,} training images"


def take_fraction(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Keep a fraction of the training images (Figure 6), chosen by a hash of seed and id.

    A smaller fraction is a subset of a larger one. Labels are not used.
    """
    if fraction == 1:
        return dataset
    train = dataset.train
    order = sorted(
        range(len(train.ids)),
        # "share" is part of the hash: another word would choose other images.
        key=lambda n: hashlib.sha256(f"share {seed} {train.ids[n]}".encode()).digest(),
    )
    indices = sorted(order[: fraction_count(len(order), fraction)])
    subset = dataclasses.replace(
        train,
        ids=tuple(train.ids[i] for i in indices),
        paths=tuple(train.paths[i] for i in indices),
        labels=None if train.labels is None else train.labels[indices],
    )
    protocol = fraction_protocol(dataset.protocol, len(indices), len(order))
    return dataclasses.replace(dataset, train=subset, protocol=protocol)


def check(dataset: Dataset) -> None:
    """Raise DataError if a data set breaks a rule on which all other modules rely.

    These are: at least two classes, no name repeated, empty or with control characters; ids unique
    within a split; if labels are known, one per image and each of an existing class; no image in
    both splits.
    """
    names = dataset.class_names
    where = f"{dataset.names_source or dataset.name}: "
    if len(names) < 2:
        raise DataError(
            f"{where}expected at least two class names, found {len(names)}: "
            f"{', '.join(names) or 'none'}"
        )
    counts = Counter(name for synonyms in dataset.class_synonyms for name in synonyms)
    wrong = [name for name, count in counts.items() if count > 1 or not name.strip()]
    if wrong:
        raise DataError(
            f"{where}expected different class names, found {wrong[0]!r}, which is repeated or empty"
        )
    for name in counts:
        class_names.check_characters(name, dataset.names_source or dataset.name)
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        if split is not None:
            _check_split(f"{split.source or dataset.name}: ", part, split, len(names))
    if dataset.test is not None:
        _check_disjoint(dataset.train, dataset.test)


def _check_split(where: str, part: str, split: Split, classes: int) -> None:
    if not split.ids:
        raise DataError(f"{where}expected images in the {part} part, found none")
    image, count = Counter(split.ids).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{where}the {part} part lists the image {image!r} {count} times; list it once"
        )
    if split.labels is None:
        return
    if len(split.labels) != len(split.ids) or not all(0 <= n < classes for n in split.labels):
        raise DataError(
            f"{where}expected {len(split.ids)} labels from 0 to {classes - 1} in the {part} part, "
            f"found {len(split.labels)} from {min(split.labels)} to {max(split.labels)}"
        )


def _check_disjoint(train: Split, test: Split) -> None:
    # The protocol is inductive: training never sees a test image, not even through a link.
    train_files = set(map(os.path.realpath, train.paths))
    pairs = zip(test.ids, map(os.path.realpath, test.paths), strict=True)
    if both := [image for image, path in pairs if path in train_files]:
        sources = [split.source or "the reader of config.dataset.kind" for split in (train, test)]
        raise DataError(
            f"{len(both)} of {len(test.ids)} test images are training images as well, the "
            f"first: {both[0]!r}; training must not see test images. Remove them from one of the "
            f"two parts, which are listed by {' and '.join(dict.fromkeys(sources))}"
        )
