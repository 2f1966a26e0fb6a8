"""Batches as a function of seed and step."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from lattec_jax.data.text import bucketing
from lattec_jax.training.batches import Batches

N, B, K = 53, 8, 2


@pytest.fixture
def batches() -> Batches:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, (N, K)).astype(np.int32)
    return Batches(N, B, 7, 40, lengths, 40, labels=rng.integers(0, 4, N).astype(np.int32))


def test_an_epoch_is_a_permutation_without_its_incomplete_last_batch(batches):
    assert batches.steps_per_epoch == 6
    for epoch in range(3):
        steps = [batches.at(epoch * 6 + place) for place in range(6)]
        seen = np.concatenate([host.images for host in steps])
        assert len(set(seen.tolist())) == 48 and seen.min() >= 0 and seen.max() < N
        assert [host.ends_epoch for host in steps] == [False] * 5 + [True]
    first = np.concatenate([batches.at(s).images for s in range(6)])
    second = np.concatenate([batches.at(s).images for s in range(6, 12)])
    assert not np.array_equal(first, second)


def test_any_step_can_be_rebuilt_on_its_own(batches):
    walked = [batches.at(step) for step in range(20)]
    again = dataclasses.replace(batches).at(17)
    for field in dataclasses.fields(again):
        one, other = getattr(walked[17], field.name), getattr(again, field.name)
        np.testing.assert_equal(one, other)
    assert not np.array_equal(walked[0].images, dataclasses.replace(batches, seed=8).at(0).images)


def test_text_rows_and_places_lead_back_to_each_images_texts(batches):
    for host in map(batches.at, range(12)):
        rows = np.concatenate(host.text_indices)[host.text_positions].reshape(B, K)
        np.testing.assert_array_equal(rows, host.images[:, None] * K + np.arange(K))
        for bucket, max_length in zip(host.text_indices, host.bucket_lengths, strict=True):
            assert batches.lengths.reshape(-1)[bucket].max(initial=0) <= max_length


@pytest.mark.parametrize("redraw", [(), (1,)])
@pytest.mark.parametrize("seed", range(4))
def test_one_plan_holds_all_batches_of_a_run_however_rare_long_texts_are(
    batches, seed, redraw, monkeypatch
):
    """Another plan would be another program, compiled in the middle of the run."""
    monkeypatch.setattr(bucketing, "CAPACITY_MARGIN_STDS", 0.0)  # nothing but counting makes room
    lengths = np.full((N, K), 10, np.int32)
    lengths[[3, 30], [0, 1]] = 40  # one in a batch on average, two in some
    lengths[7] = 20
    run = dataclasses.replace(batches, lengths=lengths, seed=seed, steps=600, redraw=redraw)
    shapes, longest = set(), 0
    for host in map(run.at, range(600)):
        shapes.add((host.bucket_lengths, tuple(map(len, host.text_indices))))
        longest = max(longest, int((lengths[host.text_images, np.arange(K)] == 40).sum()))
    assert shapes == {(run.plan.lengths, run.plan.sizes)}
    assert longest > 1 and run.plan.sizes[0] == longest
    uncounted = dataclasses.replace(run, steps=0)
    with pytest.raises(ValueError, match="the plan was made for other batches"):
        list(map(uncounted.at, range(600)))


def test_redrawn_groups_share_the_label_and_change_with_the_step(batches):
    redrawn = dataclasses.replace(batches, redraw=(1,))
    others = 0
    for host in map(redrawn.at, range(12)):
        np.testing.assert_array_equal(host.text_images[:, 0], host.images)
        np.testing.assert_array_equal(
            redrawn.labels[host.text_images[:, 1]], redrawn.labels[host.images]
        )
        rows = np.concatenate(host.text_indices)[host.text_positions].reshape(B, K)
        np.testing.assert_array_equal(rows, host.text_images * K + np.arange(K))
        others += int((host.text_images[:, 1] != host.images).sum())
    assert others > 60  # of 96, drawn among some 13 with the same label
    drawn = {s: redrawn.at(s).text_images[:, 1].tolist() for s in (0, 6)}
    assert drawn[0] != drawn[6]
    assert redrawn.at(6).text_images.tolist() == redrawn.at(6).text_images.tolist()
    # With a single label the draw depends on nothing but seed and step.
    single = dataclasses.replace(redrawn, labels=np.zeros(N, np.int32))
    drawn = [single.at(step).text_images[:, 1].tolist() for step in range(4)]
    assert all(one != other for one, other in itertools.combinations(drawn, 2))
