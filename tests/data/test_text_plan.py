"""Groups of texts by length: they hold what they promise, and cost less."""

from __future__ import annotations

import numpy as np
import pytest

from lattec_jax.data.text_plan import bucket_length, full_plan, make_plan


def realistic_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Tokens of descriptions: 22 on average, with a tail up to 77."""
    return np.clip(rng.gamma(6, 3.6, count).round(), 4, 77).astype(np.int32)


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_plan_holds_random_batches_and_every_text_fits(multiple):
    rng = np.random.default_rng(0)
    lengths = realistic_lengths(rng, 5000)
    plan = make_plan(lengths, 512, 77, multiple)
    assert sum(plan.sizes) == 512
    assert all(size % multiple == 0 for size in plan.sizes)
    held = 0
    for _ in range(200):
        batch = rng.choice(lengths, 512, replace=False)
        assigned = plan.assign(batch)
        if assigned is None:
            continue
        held += 1
        groups, places = assigned
        for positions, room, size in zip(groups, plan.lengths, plan.sizes, strict=True):
            assert len(positions) == size
            assert batch[positions].max(initial=0) <= room
        # Concatenated groups, read at the places, are the batch again.
        np.testing.assert_array_equal(np.concatenate(groups)[places], np.arange(512))
    assert held >= 198


def test_a_plan_costs_less_than_full_length():
    lengths = realistic_lengths(np.random.default_rng(1), 5000)
    assert 20 < lengths.mean() < 24 and lengths.max() > 60
    plan = make_plan(lengths, 1024, 77)
    assert plan.tokens < 0.5 * full_plan(1024, 77).tokens
    assert plan.tokens >= lengths.mean() * 1024


def test_too_many_long_texts_are_refused():
    lengths = np.array([10] * 990 + [70] * 10)
    plan = make_plan(lengths, 100, 77)
    assert plan.assign(np.full(100, 70)) is None
    assert full_plan(100, 77).assign(np.full(100, 70)) is not None


@pytest.mark.parametrize("length", [1, 16, 17, 48, 77])
def test_texts_of_one_length_make_one_group(length):
    plan = make_plan(np.full(50, length), 20, 77)
    assert (plan.lengths, plan.sizes) == ((bucket_length(length, 77),), (20,))


def test_no_texts_make_no_groups():
    plan = make_plan(np.zeros(0, np.int32), 0, 77)
    assert plan.tokens == 0
    groups, places = plan.assign(np.zeros(0, np.int32))
    assert groups == [] and len(places) == 0


def test_buckets_end_at_the_context_length():
    assert [bucket_length(n, 77) for n in (1, 16, 17, 33, 49)] == [16, 16, 24, 40, 77]
    assert [bucket_length(n, 32) for n in (16, 17, 32)] == [16, 24, 32]
    assert bucket_length(5, 12) == 12
