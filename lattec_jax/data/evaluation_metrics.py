"""Evaluation metrics in NumPy, with and without labels. All are fractions, not percentages."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def top_k_accuracy(
    scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], k: int
) -> float:
    """Return the fraction of images whose true class has one of the k highest scores.

    Ties are resolved in favor of the lower class index, as `argmax` does. An image with a NaN score
    counts as wrong.
    """
    true = scores[np.arange(len(labels)), labels][:, None]
    lower = np.arange(scores.shape[1])[None, :] < labels[:, None]
    ahead = (scores > true) | ((scores == true) & lower)
    return float(np.mean((ahead.sum(axis=1) < k) & ~np.isnan(scores).any(axis=1)))


def per_class_accuracy(
    predictions: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], classes: int
) -> list[float | None]:
    """Return the accuracy on the images of each class; None for a class without images."""
    counts = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels[predictions == labels], minlength=classes)
    return [float(c / n) if n else None for c, n in zip(correct, counts, strict=True)]


def class_fractions(predictions: Int[np.ndarray, " N"], classes: int) -> list[float]:
    """Return the fraction of images that each class is predicted for."""
    return (np.bincount(predictions, minlength=classes) / max(len(predictions), 1)).tolist()


def entropy(fractions: list[float]) -> float:
    """Return the normalized entropy of class fractions: 1 if uniform, 0 for a single class."""
    p = np.asarray([fraction for fraction in fractions if fraction > 0])
    return float(-(p * np.log(p)).sum() / np.log(len(fractions))) + 0.0  # never -0.0


def drift(before: Float[np.ndarray, "C D"], after: Float[np.ndarray, "C D"]) -> list[float]:
    """Return 1 − cosine similarity of each class vector before and after; both are unit vectors."""
    return (1 - np.sum(before * after, axis=1)).tolist()


def accuracies(
    scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"] | None
) -> dict[str, float] | None:
    """Return top-1 and top-5 accuracy as in `results.json`; None without labels."""
    if labels is None:
        return None
    return {"top1": top_k_accuracy(scores, labels, 1), "top5": top_k_accuracy(scores, labels, 5)}
