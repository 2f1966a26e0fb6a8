"""Which images are described together: those with the same pseudo-label (the paper, Sec. 3.1).

Two readings (`config.descriptions.group_members`). The paper gives an image the description of its
own group: images drawn at random that share its pseudo-label. These words support a group that the
image belongs to, which is "with_image" (the preset "paper"), but they do not say so. The authors'
released code draws all members from the class, so that the image is among them by chance only:
"drawn" (the preset "released_code").
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from lattec_jax.runtime.errors import DataError


def sample_groups(
    ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    size: int,
    seed: int,
    with_image: bool = True,
) -> dict[str, tuple[str, ...]]:
    """One group for each image, of images with its pseudo-label.

    Drawn without replacement; with it where the class has fewer. An image alone in its class is
    repeated. The draw depends on the seed, the image and the members of its class, not on the order
    of the images.

    Args:
        ids: all N images.
        labels: their `[N]` pseudo-labels.
        size: images in a group.
        seed: of the draw.
        with_image: the image comes first and `size - 1` others are drawn; False: all `size` are
            drawn, the image like any other.

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
    for image in ids:
        members = classes[label_of[image]]
        rng = np.random.default_rng([seed, _number(image)])
        if not with_image:
            drawn = rng.choice(len(members), size, replace=len(members) < size)
            groups[image] = tuple(members[i] for i in drawn)
            continue
        others = len(members) - 1
        if others:
            drawn = rng.choice(others, size - 1, replace=others < size - 1)
            drawn += drawn >= place[image]  # step over the image itself
        else:
            drawn = np.zeros(size - 1, int)
        groups[image] = (image, *(members[i] for i in drawn))
    return groups


def sample_forced_groups(
    ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    size: int,
    seed: int,
    true_labels: Sequence[int] | np.ndarray,
    correct: int,
    correct_label: str = "pseudo",
) -> dict[str, tuple[str, ...]]:
    """Groups with a given number of correct images: an analysis with labels (the paper, Table 4).

    An image is correct in a group if its true label is the group's class. That class is the
    pseudo-label of the image that the group is for, or that image's own true label; the paper does
    not say which. The image itself comes first, unless it is wrong and all have to be correct, or
    the other way round. Correct members are drawn among the images whose pseudo-label is the
    group's class, or, where none of them is correct, among all images of that true class; wrong
    ones likewise, at last among all images of other classes.

    Args:
        ids: all N images.
        labels: their `[N]` pseudo-labels.
        size: images in a group.
        seed: of the draw.
        true_labels: `[N]`.
        correct: images in a group that are correct, from 0 to `size`.
        correct_label: a group's class: its image's "pseudo"-label or its "true" label.

    Returns:
        Image id -> ids of the members.

    Raises:
        DataError: no image has a group's class as its true label, or every image has.
    """
    order = np.argsort(np.array(ids, dtype=object))
    assigned, true = np.asarray(labels), np.asarray(true_labels)
    classes = {"pseudo": assigned, "true": true}[correct_label]
    pools = {
        label: (
            _pool(order, (assigned == label) & (true == label), true == label),
            _pool(order, (assigned == label) & (true != label), true != label),
        )
        for label in np.unique(classes).tolist()
    }
    groups = {}
    for row, image in enumerate(ids):
        rng = np.random.default_rng([seed, _number(image)])
        pool_right, pool_wrong = pools[int(classes[row])]
        is_right = classes[row] == true[row]
        right, wrong = correct, size - correct
        first = []
        if right if is_right else wrong:
            first = [row]
            right, wrong = (right - 1, wrong) if is_right else (right, wrong - 1)
        drawn = [*_draw(rng, pool_right, right, row), *_draw(rng, pool_wrong, wrong, row)]
        groups[image] = tuple(ids[i] for i in [*first, *rng.permutation(drawn).astype(int)])
    return groups


def _pool(order: np.ndarray, wanted: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Rows of the wanted images, or of the others where there are none, in the order of the ids."""
    return order[(wanted if wanted.any() else otherwise)[order]]


def _draw(rng: np.random.Generator, pool: np.ndarray, count: int, own: int) -> np.ndarray:
    """`count` rows of the pool, without the image's own where there are others."""
    if not count:
        return np.zeros(0, int)
    others = pool[pool != own]
    if not len(others):
        others = pool
    if not len(others):
        raise DataError(
            "config.descriptions.correct_per_group: there are no images to draw from, because no "
            "image, or every one, is of the class; leave it unset"
        )
    return rng.choice(others, count, replace=len(others) < count)


def _number(image: str) -> int:
    """A number that depends on the id alone."""
    digest = hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
