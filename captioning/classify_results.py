"""What `captioning.classify` found: predictions, `results.json`, and what is printed of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captioning.answers import CLOSEST, EXACT, NORMALIZED, UNMATCHED, Matcher
from captioning.tasks import Task
from lattec_jax.data import evaluation_metrics
from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.descriptions import Record

FAILED = "failed"  # there is no answer
LISTED = 10  # unmatched answers, and failures, that are shown
_NO_CLASS = -1


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was made of one image's answer."""

    image: str
    answer: str | None  # None where it failed
    label: int | None
    how: str
    error: str = ""

    def line(self, class_names: Sequence[str]) -> dict[str, Any]:
        """As `predictions.jsonl` states it."""
        values = {
            "image": self.image,
            "answer": self.answer,
            "class": None if self.label is None else class_names[self.label],
            "how": self.how,
        }
        return values | ({"error": self.error} if self.error else {})


def predict(
    dataset: Dataset, tasks: Sequence[Task], found: Mapping[str, Record]
) -> list[Prediction]:
    """The classes of all images, from the records of their keys."""
    match = Matcher(dataset.names)
    predictions = []
    for task in tasks:
        record = found[task.key]
        if record.error:
            predictions.append(Prediction(task.image, None, None, FAILED, record.error))
        else:
            predictions.append(Prediction(task.image, record.text, *match(record.text)))
    return predictions


def summarize(dataset: Dataset, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """What `results.json` says of the predictions, in the form of `lattec_jax.train`.

    The accuracy is that of the "adapted" model, in that it is what the method ends with: no CLIP
    came before it ("zero_shot" is null), and one answer has no top-5.
    """
    classes = len(dataset.class_names)
    labels = np.array([_NO_CLASS if p.label is None else p.label for p in predictions])
    fractions = evaluation_metrics.class_fractions(labels[labels != _NO_CLASS], classes)
    adapted = per_class = None
    if dataset.test.labels is not None:
        adapted = {"top1": float(np.mean(labels == dataset.test.labels)), "top5": None}
        per_class = evaluation_metrics.per_class_accuracy(labels, dataset.test.labels, classes)
    failed = {p.image: p.error for p in predictions if p.how == FAILED}
    return {
        "n_train": 0,  # none is looked at
        "n_test": len(predictions),
        "unreadable": list(failed),  # counted as wrong, not left out
        "n_left_out": {"train": 0, "test": 0},
        "zero_shot": None,
        "adapted": adapted,
        "per_class": {"zero_shot": None, "adapted": per_class},
        "answers": _answers(predictions),
        "failed": failed,
        "table": table(dataset.class_names, adapted, per_class, fractions, len(predictions)),
        "label_free": {
            "label_agreement": None,
            "class_fractions": fractions,  # among the answers that name a class
            "class_entropy": evaluation_metrics.entropy(fractions),
            "prototype_drift": None,
        },
        "train_seconds": None,
        "images_per_second": None,
    }


def _answers(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """How many answers each step of the rule matched, and the first that none did."""
    counts = Counter(p.how for p in predictions)
    unmatched = [{"image": p.image, "answer": p.answer} for p in predictions if p.how == UNMATCHED]
    steps = (EXACT, NORMALIZED, CLOSEST, UNMATCHED, FAILED)
    return {how: counts[how] for how in steps} | {"first_unmatched": unmatched[:LISTED]}


def table(
    class_names: Sequence[str],
    accuracy: Mapping[str, float] | None,
    per_class: Sequence[float | None] | None,
    fractions: Sequence[float],
    images: int,
) -> str:
    """Accuracy in all and per class; without labels the share of each class."""
    width = max(len("top1"), *map(len, class_names)) + 2
    if accuracy is None:
        title = f"share of the answers per class, {images} images (there are no labels)"
        rows = list(zip(class_names, fractions, strict=True))
    else:
        title = f"accuracy on {images} test images"
        rows = [("top1", accuracy["top1"]), *zip(class_names, per_class, strict=True)]
    metrics = (f"{n:{width}}{'no images' if v is None else f'{v:.1%}':>10}" for n, v in rows)
    return "\n".join([title, *metrics])


def report(found: Mapping[str, Any]) -> str:
    """What is printed of `results.json`."""
    answers = found["answers"]
    steps = (f"{how} {count}" for how, count in answers.items() if how != "first_unmatched")
    lines = [found["table"], f"answers: {', '.join(steps)}"]
    for first in answers["first_unmatched"]:
        lines.append(f"  unmatched: {first['image']}: {first['answer']!r}")
    for image, reason in list(found["failed"].items())[:LISTED]:
        lines.append(f"  failed: {image}: {reason}")
    return "\n".join(lines)
