"""Groups: the image first, others of its pseudo-label, and the same in whatever order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from captioning.groups import sample_groups

IDS = [f"train/{i:04d}.png" for i in range(300)]
LABELS = np.random.default_rng(0).integers(0, 5, 300).astype(np.int32)


def test_members():
    label = dict(zip(IDS, LABELS.tolist(), strict=True))
    groups = sample_groups(IDS, LABELS, 4, seed=0)
    assert list(groups) == IDS
    for image, members in groups.items():
        assert members[0] == image and len(set(members)) == 4
        assert {label[member] for member in members} == {label[image]}


def test_small_classes_are_drawn_with_replacement():
    groups = sample_groups(["a", "b", "c", "d", "e"], [0, 1, 1, 2, 2], 4, seed=3)
    assert groups["a"] == ("a",) * 4
    assert groups["b"] == ("b", "c", "c", "c")
    assert groups["e"] == ("e", "d", "d", "d")
    exact = sample_groups(list("abcd"), [7] * 4, 4, seed=0)
    assert all(sorted(members) == list("abcd") for members in exact.values())


def test_order_and_shards_do_not_matter():
    whole = sample_groups(IDS, LABELS, 4, seed=1)
    order = np.random.default_rng(5).permutation(len(IDS))
    assert sample_groups([IDS[i] for i in order], LABELS[order], 4, seed=1) == whole
    shards = [sample_groups(IDS, LABELS, 4, 1, only=IDS[k::3]) for k in range(3)]
    assert shards[0] | shards[1] | shards[2] == whole
    assert sum(map(len, shards)) == len(whole)


def test_the_seed_matters_and_draws_are_uniform():
    assert sample_groups(IDS, LABELS, 4, seed=0) != sample_groups(IDS, LABELS, 4, seed=1)
    ids, labels = IDS[:10], [0] * 10
    counts = Counter()
    for seed in range(400):
        counts.update(sample_groups(ids, labels, 4, seed, only=ids[:1])[ids[0]][1:])
    assert set(counts) == set(ids[1:])
    assert max(abs(count - 400 * 3 / 9) for count in counts.values()) < 45  # 5 deviations


def test_size():
    assert sample_groups(["a", "b"], [0, 0], 1, seed=0) == {"a": ("a",), "b": ("b",)}
    with pytest.raises(ValueError, match="at least one"):
        sample_groups(["a"], [0], 0, seed=0)
