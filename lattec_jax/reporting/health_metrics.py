"""Label-free health metrics: the zero-shot baseline of a run, and how far the model moved from it.

Pure functions of arrays and of lines of `metrics.jsonl`. No label is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from lattec_jax.data.evaluation_metrics import class_fractions, drift, entropy

WINDOW = 3  # lines of the log that a metric is averaged over
LogLine = Mapping[str, float | None]  # a line of metrics.jsonl


@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """The zero-shot model on the training images. N training images, C classes."""

    class_names: Sequence[str]
    class_weights: Float[np.ndarray, "C D"]  # unit vectors of the pre-trained model
    labels: Int[np.ndarray, " N"]  # zero-shot pseudo-labels
    batch_size: int
    coverage: Mapping[str, float]  # kind of description -> fraction of images that have one

    @cached_property
    def class_fractions(self) -> list[float]:
        """Fraction of the training images per pseudo-label."""
        return class_fractions(self.labels, len(self.class_names))

    @cached_property
    def batch_entropy(self) -> float:
        """Mean entropy of the pseudo-labels in random batches.

        A batch contains fewer classes than the training set, so its entropy is lower.
        """
        rng, count = np.random.default_rng(0), len(self.class_names)
        batches = [rng.choice(self.labels, self.batch_size) for _ in range(32)]
        return float(np.mean([entropy(class_fractions(batch, count)) for batch in batches]))

    @cached_property
    def class_distance(self) -> float:
        """See `class_distance`."""
        return class_distance(self.class_weights)


def nearest_classes(
    class_weights: Float[np.ndarray, "C D"],
) -> tuple[Float[np.ndarray, " C"], Int[np.ndarray, " C"]]:
    """Return each class's largest cosine to another class, and the index of that class."""
    cosines = class_weights @ class_weights.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.max(axis=1), cosines.argmax(axis=1)


def class_distance(class_weights: Float[np.ndarray, "C D"]) -> float:
    """Return the mean over classes of 1 − cosine to the nearest other class."""
    return max(float(np.mean(1 - nearest_classes(class_weights)[0])), 1e-6)


def prototype_metrics(
    baseline: Baseline, class_weights: Float[np.ndarray, "C D"]
) -> dict[str, float]:
    """Return how far the class weights moved and how close they are to each other.

    `drift_*` is 1 − cosine to the start, `nearest_similarity` the largest cosine between two
    classes, and `separation` the `class_distance` relative to the start.
    """
    distances = drift(baseline.class_weights, class_weights)
    return {
        "drift_mean": float(np.mean(distances)),
        "drift_largest": max(distances),
        "nearest_similarity": float(nearest_classes(class_weights)[0].max()),
        "separation": class_distance(class_weights) / baseline.class_distance,
    }


def final_metrics(
    baseline: Baseline,
    class_weights: Float[np.ndarray, "C D"],
    predictions: Int[np.ndarray, " N"],
    log: Sequence[LogLine],
) -> dict[str, float]:
    """Return the metrics of the adapted model on all training images and the last ones logged."""
    fractions = class_fractions(predictions, len(baseline.class_names))
    metrics = {
        "agreement_with_frozen": float(np.mean(predictions == baseline.labels)),
        "class_entropy": entropy(fractions),
        "class_entropy_zero_shot": entropy(baseline.class_fractions),
        **prototype_metrics(baseline, class_weights),
        **{f"coverage_{kind}": fraction for kind, fraction in baseline.coverage.items()},
    }
    weights = [name for line in log for name in line if name.startswith("weight_")]
    for name in dict.fromkeys([*weights, "gradient_norm", "logit_scale"]):
        if (value := window_mean(log[-WINDOW:], name)) is not None:
            metrics[name] = value
    return metrics


def window_mean(lines: Sequence[LogLine], name: str) -> float | None:
    """Return the mean of a logged metric, or None unless `WINDOW` lines contain it."""
    values = [value for line in lines if (value := line.get(name)) is not None]
    return float(np.mean(values)) if len(values) == WINDOW else None
