"""Accuracies and label-free metrics, in NumPy. All shares are fractions, not per cent."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def top_k_accuracy(
    scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"], k: int
) -> float:
    """Share of images whose true class is among the k best scores.

    Equal scores are resolved in favor of the lower class, as `argmax` does; an image with a score
    that is not a number counts as wrong.
    """
    true = scores[np.arange(len(labels)), labels][:, None]
    lower = np.arange(scores.shape[1])[None, :] < labels[:, None]
    ahead = (scores > true) | ((scores == true) & lower)
    return float(np.mean((ahead.sum(axis=1) < k) & ~np.isnan(scores).any(axis=1)))


def per_class_accuracy(
    predictions: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], classes: int
) -> list[float | None]:
    """Share of each class's images that are predicted right; None for a class without images."""
    counts = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predictions == labels], minlength=classes)
    return [float(r / n) if n else None for r, n in zip(right, counts, strict=True)]


def class_fractions(predictions: Int[np.ndarray, " N"], classes: int) -> list[float]:
    """Share of the images that each class is predicted for."""
    return (np.bincount(predictions, minlength=classes) / max(len(predictions), 1)).tolist()


def entropy(fractions: list[float]) -> float:
    """Entropy of class shares divided by that of even shares: 1 is even, 0 is one class."""
    p = np.asarray([fraction for fraction in fractions if fraction > 0])
    return float(-(p * np.log(p)).sum() / np.log(len(fractions)))


def drift(before: Float[np.ndarray, "C D"], after: Float[np.ndarray, "C D"]) -> list[float]:
    """1 − cosine between each class's vector before and after; both are unit vectors."""
    return (1 - np.sum(before * after, axis=1)).tolist()


def accuracies(
    scores: Float[np.ndarray, "N C"], labels: Int[np.ndarray, " N"] | None
) -> dict[str, float] | None:
    """Top-1 and top-5 as `results.json` states them; None without labels."""
    if labels is None:
        return None
    return {"top1": top_k_accuracy(scores, labels, 1), "top5": top_k_accuracy(scores, labels, 5)}
