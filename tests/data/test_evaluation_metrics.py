"""Accuracies against scikit-learn and simple cases."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import recall_score, top_k_accuracy_score

from lattec_jax.data import evaluation_metrics


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k):
    rng = np.random.default_rng(k)
    scores, labels = rng.normal(size=(500, 9)), rng.integers(0, 9, 500)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(9))
    assert evaluation_metrics.top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_ties_are_resolved_as_by_argmax():
    scores, labels = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    assert evaluation_metrics.top_k_accuracy(scores, labels, 1) == 0.5
    assert evaluation_metrics.top_k_accuracy(scores, labels, 2) == 0.75
    assert np.mean(scores.argmax(axis=1) == labels) == 0.5


def test_fewer_classes_than_k():
    scores, labels = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([0, 1])
    assert evaluation_metrics.accuracies(scores, labels) == {"top1": 0.0, "top5": 1.0}
    assert evaluation_metrics.accuracies(scores, None) is None


def test_per_class_accuracy_is_recall_and_none_without_images():
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    found = evaluation_metrics.per_class_accuracy(predictions, labels, 4)
    expected = recall_score(labels, predictions, labels=[0, 1, 2], average=None)
    np.testing.assert_allclose(found[:3], expected)
    assert found[3] is None


def test_class_fractions_and_entropy():
    assert evaluation_metrics.class_fractions(np.array([0, 0, 2, 0]), 4) == [0.75, 0.0, 0.25, 0.0]
    assert evaluation_metrics.entropy([0.25] * 4) == pytest.approx(1)
    assert str(evaluation_metrics.entropy([1.0, 0.0])) == "0.0"  # not negative
    assert evaluation_metrics.entropy([0.5, 0.5, 0.0, 0.0]) == pytest.approx(0.5)


def test_drift_is_zero_for_the_same_and_two_for_opposites():
    vectors = np.eye(3)
    np.testing.assert_allclose(evaluation_metrics.drift(vectors, vectors), 0)
    np.testing.assert_allclose(evaluation_metrics.drift(vectors, -vectors), 2)
    np.testing.assert_allclose(evaluation_metrics.drift(vectors, np.roll(vectors, 1, axis=0)), 1)


def test_nan_scores_count_as_wrong():
    scores = np.array([[np.nan, np.nan, np.nan], [0.1, 0.9, 0.0]])
    assert evaluation_metrics.accuracies(scores, np.array([0, 1])) == {"top1": 0.5, "top5": 0.5}
