"""Sample groups of images with the same pseudo-label, to be described together (paper, Sec. 3.1).

The paper gives an image the description of its group: images drawn at random that share its
pseudo-label. It does not state whether the group contains the image itself.
`config.descriptions.group_members` selects a reading: "with_image" (preset "paper") always includes
it; "drawn" (preset "released_code") draws all members from the class, as the authors' released code
does, so that the image is a member only by chance.
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
    """Sample a group for each image from the images with its pseudo-label: id -> ids.

    Members are drawn without replacement, or with replacement if the class has too few. An image
    alone in its class is repeated. The sample depends on the seed, the image and the members of its
    class, not on the order of the images.

    Args:
        labels: `[N]` pseudo-labels of the N images.
        size: number of images in a group.
        with_image: if True, the image comes first and `size - 1` other images are drawn; otherwise
            all `size` members are drawn, from all images of the class.
    """
    if size < 1:
        raise ValueError(f"expected a group of at least one image, found size {size}")
    label_of = dict(zip(ids, np.asarray(labels).tolist(), strict=True))
    classes: dict[int, list[str]] = {}
    for image in sorted(label_of):
        classes.setdefault(label_of[image], []).append(image)
    position = {image: i for members in classes.values() for i, image in enumerate(members)}
    groups = {}
    for image in ids:
        members = classes[label_of[image]]
        rng = np.random.default_rng([seed, _number(image)])
        if not with_image:
            drawn = rng.choice(len(members), size, replace=len(members) < size)
            groups[image] = tuple(members[i] for i in drawn)
            continue
        candidates = len(members) - 1
        if candidates:
            drawn = rng.choice(candidates, size - 1, replace=candidates < size - 1)
            drawn += drawn >= position[image]  # skip the image itself
        else:
            drawn = np.zeros(size - 1, int)
        groups[image] = (image, *(members[i] for i in drawn))
    return groups


def sample_groups_with_correct_count(
    ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    size: int,
    seed: int,
    true_labels: Sequence[int] | np.ndarray,
    correct: int,
    correct_label: str = "pseudo",
) -> dict[str, tuple[str, ...]]:
    """Sample groups with a given number of correct images: an analysis with labels (Table 4).

    A member is correct if its true label is the group's class. The paper does not state whether
    that class is the pseudo-label or the true label of the image that the group is for;
    `correct_label` selects it. The image itself comes first if the group has room for it as a
    correct or a wrong member. Correct members are drawn from the images whose pseudo-label is the
    group's class, or, if none of these is correct, from all images of that true class. Wrong
    members are drawn from the images with that pseudo-label too, or, if none of these is wrong,
    from all images of other true classes.

    Args:
        ids, labels, size, seed: see `sample_groups`, which returns the same.
        true_labels: `[N]`.
        correct: number of correct images in a group, from 0 to `size`.
        correct_label: the group's class is the image's "pseudo" label or its "true" label.
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
    for index, image in enumerate(ids):
        rng = np.random.default_rng([seed, _number(image)])
        correct_pool, wrong_pool = pools[int(classes[index])]
        is_correct = bool(classes[index] == true[index])
        num_correct, num_wrong = correct, size - correct
        first = []
        if num_correct if is_correct else num_wrong:
            first = [index]
            num_correct, num_wrong = num_correct - is_correct, num_wrong - (not is_correct)
        drawn = [
            *_draw(rng, correct_pool, num_correct, index),
            *_draw(rng, wrong_pool, num_wrong, index),
        ]
        groups[image] = tuple(ids[i] for i in [*first, *rng.permutation(drawn).astype(int)])
    return groups


def _pool(order: np.ndarray, mask: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Return the indices where `mask` holds, or else `fallback`, in the order of the ids."""
    return order[(mask if mask.any() else fallback)[order]]


def _draw(rng: np.random.Generator, pool: np.ndarray, count: int, image: int) -> np.ndarray:
    """Draw `count` indices from the pool, not the image's unless it is the only one."""
    if not count:
        return np.zeros(0, int)
    candidates = pool[pool != image]
    if not len(candidates):
        candidates = pool
    if not len(candidates):
        raise DataError(
            "config.descriptions.correct_per_group: there are no images to draw from, because no "
            "image, or every image, is of the class; leave it unset"
        )
    return rng.choice(candidates, count, replace=len(candidates) < count)


def _number(image: str) -> int:
    """Return a number that depends on the id only."""
    digest = hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")
