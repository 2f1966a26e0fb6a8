"""Length bucketing: capacity of the buckets, and cost."""

from __future__ import annotations

import numpy as np
import pytest

from lattec_jax.data.text.bucketing import (
    BucketPlan,
    bucket_bounds,
    bucket_length,
    make_bucket_plan,
)


def realistic_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return lengths like those of descriptions: 22 on average, with a tail up to 77."""
    return np.clip(rng.gamma(6, 3.6, count).round(), 4, 77).astype(np.int32)


def counted(batches: np.ndarray) -> np.ndarray:
    """Return for each bound the largest number of longer texts in one of the batches `[S, M]`."""
    return np.stack([(batches > bound).sum(axis=1).max() for bound in bucket_bounds(77)])


def tokens(plan: BucketPlan) -> int:
    """Return the number of tokens encoded per batch."""
    return sum(size * length for size, length in zip(plan.sizes, plan.lengths, strict=True))


@pytest.mark.parametrize("multiple", [1, 8])
def test_every_text_fits_into_its_bucket(multiple):
    rng = np.random.default_rng(0)
    lengths = realistic_lengths(rng, 5000)
    batches = np.stack([rng.choice(lengths, 512, replace=False) for _ in range(200)])
    plan = make_bucket_plan(lengths, counted(batches), 512, 77, multiple)
    assert sum(plan.sizes) == 512
    assert all(size % multiple == 0 for size in plan.sizes)
    for batch in batches:
        buckets, positions = plan.assign(batch)
        for indices, max_length, size in zip(buckets, plan.lengths, plan.sizes, strict=True):
            assert len(indices) == size
            assert batch[indices].max(initial=0) <= max_length
        # Concatenated buckets, read at the positions, are the batch again.
        np.testing.assert_array_equal(np.concatenate(buckets)[positions], np.arange(512))


def test_a_plan_costs_less_than_full_length():
    lengths = realistic_lengths(np.random.default_rng(1), 5000)
    assert 20 < lengths.mean() < 24 and lengths.max() > 60
    plan = make_bucket_plan(lengths, np.zeros(6), 1024, 77)
    assert lengths.mean() * 1024 <= tokens(plan) < 0.5 * 1024 * 77


def test_batches_of_most_seeds_share_a_plan():
    lengths = realistic_lengths(np.random.default_rng(1), 5000)
    expected = make_bucket_plan(lengths, np.zeros(6), 1024, 77)
    same = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        batches = np.stack([rng.choice(lengths, 1024, replace=False) for _ in range(60)])
        same += make_bucket_plan(lengths, counted(batches), 1024, 77) == expected
    assert same >= 8


def test_capacity_is_at_least_the_largest_count():
    lengths = np.array([10] * 998 + [70] * 2)
    one = make_bucket_plan(lengths, np.array([1, 1, 1, 1, 1, 100]), 100, 77)
    assert one.sizes[0] < 10
    ten = make_bucket_plan(lengths, np.array([10, 10, 10, 10, 10, 100]), 100, 77)
    assert (ten.lengths, ten.sizes) == ((77, 16), (10, 90))


def test_too_many_long_texts_are_refused():
    lengths = np.array([10] * 990 + [70] * 10)
    plan = make_bucket_plan(lengths, np.zeros(6), 100, 77)
    with pytest.raises(ValueError, match="at most 16 tokens in a bucket, found one of 70"):
        plan.assign(np.full(100, 70))


@pytest.mark.parametrize("length", [1, 16, 17, 48, 77])
def test_texts_of_one_length_make_one_bucket(length):
    plan = make_bucket_plan(np.full(50, length), np.zeros(6), 20, 77)
    assert (plan.lengths, plan.sizes) == ((bucket_length(length, 77),), (20,))


def test_a_batch_without_texts_has_no_buckets():
    plan = make_bucket_plan(np.zeros((50, 0), np.int32), np.zeros(6), 0, 77)
    assert plan == BucketPlan((), ())
    buckets, positions = plan.assign(np.zeros(0, np.int32))
    assert buckets == [] and len(positions) == 0


def test_buckets_end_at_the_context_length():
    assert [bucket_length(n, 77) for n in (1, 16, 17, 33, 49)] == [16, 16, 24, 40, 77]
    assert [bucket_length(n, 32) for n in (16, 17, 32)] == [16, 24, 32]
    assert bucket_length(5, 12) == 12
