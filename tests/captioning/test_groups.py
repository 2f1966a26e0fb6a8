"""Groups: the image first, then images of its pseudo-label, independent of the order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from captioning.groups import sample_groups, sample_groups_with_correct_count
from lattec_jax.runtime.errors import DataError

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


def test_the_order_does_not_matter():
    whole = sample_groups(IDS, LABELS, 4, seed=1)
    order = np.random.default_rng(5).permutation(len(IDS))
    assert sample_groups([IDS[i] for i in order], LABELS[order], 4, seed=1) == whole


def test_the_seed_matters_and_draws_are_uniform():
    assert sample_groups(IDS, LABELS, 4, seed=0) != sample_groups(IDS, LABELS, 4, seed=1)
    ids, labels = IDS[:10], [0] * 10
    counts = Counter()
    for seed in range(400):
        counts.update(sample_groups(ids, labels, 4, seed)[ids[0]][1:])
    assert set(counts) == set(ids[1:])
    assert max(abs(count - 400 * 3 / 9) for count in counts.values()) < 45  # 5 deviations


def test_size():
    assert sample_groups(["a", "b"], [0, 0], 1, seed=0) == {"a": ("a",), "b": ("b",)}
    with pytest.raises(ValueError, match="at least one"):
        sample_groups(["a"], [0], 0, seed=0)


TRUE = np.where(np.random.default_rng(1).random(300) < 0.7, LABELS, (LABELS + 1) % 5)


@pytest.mark.parametrize("correct", range(5))
def test_forced_groups_have_so_many_correct_images(correct):
    assigned = dict(zip(IDS, LABELS.tolist(), strict=True))
    true = dict(zip(IDS, TRUE.tolist(), strict=True))
    groups = sample_groups_with_correct_count(IDS, LABELS, 4, 0, TRUE, correct)
    assert list(groups) == IDS
    for image, members in groups.items():
        label = assigned[image]
        assert len(set(members)) == 4
        assert sum(true[member] == label for member in members) == correct
        assert {assigned[member] for member in members} == {label}
        possible = correct > 0 if true[image] == label else correct < 4
        assert (members[0] == image) == possible
    order = np.random.default_rng(5).permutation(len(IDS))
    again = sample_groups_with_correct_count(
        [IDS[i] for i in order], LABELS[order], 4, 0, TRUE[order], correct
    )
    assert again == groups
    assert sample_groups_with_correct_count(IDS, LABELS, 4, 1, TRUE, correct) != groups


@pytest.mark.parametrize("correct", range(5))
def test_correct_may_be_counted_against_the_images_own_true_label(correct):
    assigned = dict(zip(IDS, LABELS.tolist(), strict=True))
    true = dict(zip(IDS, TRUE.tolist(), strict=True))
    pseudo = sample_groups_with_correct_count(IDS, LABELS, 4, 0, TRUE, correct)
    groups = sample_groups_with_correct_count(IDS, LABELS, 4, 0, TRUE, correct, "true")
    assert list(groups) == IDS
    for image, members in groups.items():
        assert sum(true[member] == true[image] for member in members) == correct
        assert (members[0] == image) == (correct > 0)  # an image is always of its own class
        if assigned[image] == true[image]:  # the two readings differ for wrong pseudo-labels only
            assert members == pseudo[image]
        else:
            others = members[1:] if correct else members
            assert {assigned[member] for member in others} == {true[image]}


def test_forced_groups_of_a_class_without_correct_images():
    ids = list("abcdef")
    labels, true = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 1, 1, 0, 1])
    groups = sample_groups_with_correct_count(ids, labels, 4, 0, true, 2)
    assert groups["a"][0] == "a" and groups["a"].count("e") == 2  # the only one of the true class
    with pytest.raises(DataError, match="correct_per_group"):
        sample_groups_with_correct_count(ids, labels, 4, 0, np.ones(6, int), 2)
