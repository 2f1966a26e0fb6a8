"""The method once more, in NumPy with float64 and loops, written from the paper's equations."""

from __future__ import annotations

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def weight(text: np.ndarray, prototypes: np.ndarray) -> float:
    """Eq. (1) for one text."""
    ranked = sorted((float(text @ p) for p in prototypes), reverse=True)
    return ranked[0] - ranked[1] + 1e-6


def mixed(texts: list[np.ndarray], weights: list[float], p: np.ndarray, alpha: float) -> np.ndarray:
    """Eq. (2) for one image."""
    mean = sum(w * t for w, t in zip(weights, texts, strict=True)) / sum(weights)
    return (1 - alpha) * mean + alpha * p


def contrastive(images: np.ndarray, texts: np.ndarray, logit_scale: float) -> float:
    """Eq. (3) for one pseudo-label: cross-entropy image by image, then text by text."""
    total = 0.0
    for rows, columns in ((images, texts), (texts, images)):
        for i, row in enumerate(rows):
            logits = np.array([logit_scale * row @ column for column in columns])
            total -= (logits[i] - np.log(np.exp(logits).sum())) / len(rows)
    return total


def update(
    prototypes: np.ndarray, t_bar: np.ndarray, labels: np.ndarray, momentum: float
) -> np.ndarray:
    """The momentum update for one pseudo-label."""
    moved = prototypes.copy()
    for c in range(len(prototypes)):
        of_class = [t for t, label in zip(t_bar, labels, strict=True) if label == c]
        if of_class:
            moved[c] = unit((1 - momentum) * np.mean(of_class, axis=0) + momentum * prototypes[c])
    return moved


def step(
    images: np.ndarray,
    class_texts: np.ndarray,
    descriptions: np.ndarray,
    present: np.ndarray,
    prototypes: np.ndarray,
    zero_shot: np.ndarray,
    logit_scale: float,
    alpha: float,
    momentum: float,
    names: tuple[str, ...] = ("zero_shot", "current"),
    mixer: bool = True,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, prototypes after the step and the current model's labels, for the paper's method.

    `class_texts` are the features of all C class-descriptions; `names` and `mixer` are Table 3's.
    """
    current = np.array([int(np.argmax(prototypes @ f)) for f in images])
    loss, all_t_bar = 0.0, []
    chosen = [{"zero_shot": zero_shot, "current": current}[name] for name in names]
    for labels in chosen:
        t_bar = []
        for i, label in enumerate(labels):
            texts = [class_texts[label]]
            texts += [t for t, there in zip(descriptions[i], present[i], strict=True) if there]
            weights = [weight(t, prototypes) if mixer else 1.0 for t in texts]
            t_bar.append(mixed(texts, weights, prototypes[label], alpha))
        all_t_bar.append(np.array(t_bar))
        loss += contrastive(images, all_t_bar[-1], logit_scale)
    moved = prototypes
    for t_bar, labels in zip(all_t_bar, chosen, strict=True):
        moved = update(moved, np.array(t_bar), labels, momentum)
    return loss, moved, current
