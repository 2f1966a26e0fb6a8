"""Which images are described together: those with the same pseudo-label (the paper, Sec. 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np


def sample_groups(
    ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    size: int,
    seed: int,
    only: Iterable[str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """One group for each image: itself first, then `size - 1` others of its pseudo-label.

    The others are drawn without replacement; with it where the class has fewer. An image alone in
    its class is repeated. The draw depends on the seed, the image and the members of its class, not
    on the order of the images or on which of them are asked for, so shards agree.

    Args:
        ids: all N images.
        labels: their `[N]` pseudo-labels.
        size: images in a group.
        seed: of the draw.
        only: the images whose groups are wanted; None: all.

    Returns:
        Image id -> ids of the members.
    """
    if size < 1:
        raise ValueError(f"expected a group of at least one image, found size {size}")
    label_of = dict(zip(ids, np.asarray(labels).tolist(), strict=True))
    classes: dict[int, list[str]] = {}
    for image in sorted(label_of):
        classes.setdefault(label_of[image], []).append(image)
    place = {image: i for members in classes.values() for i, image in enumerate(members)}
    groups = {}
    for image in ids if only is None else only:
        members = classes[label_of[image]]
        others = len(members) - 1
        if others:
            rng = np.random.default_rng([seed, _number(image)])
            drawn = rng.choice(others, size - 1, replace=others < size - 1)
            drawn += drawn >= place[image]  # step over the image itself
        else:
            drawn = np.zeros(size - 1, int)
        groups[image] = (image, *(members[i] for i in drawn))
    return groups


def _number(image: str) -> int:
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big")
