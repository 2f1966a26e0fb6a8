"""Results of `captioning.classify`: predictions, `results.json` and the printed report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captioning.answer_matching import CLOSEST, EXACT, NORMALIZED, UNMATCHED, AnswerMatcher
from captioning.tasks import Task
from captioning.worker import list_failures
from lattec_jax.data import evaluation_metrics
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.descriptions import Record

FAILED = "failed"  # no answer
MAX_UNMATCHED = 10  # unmatched answers that are shown
_NO_CLASS = -1


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one image, and its class."""

    image: str
    answer: str | None  # None: failed
    label: int | None  # None: unmatched or failed
    how: str  # the step that matched it, or FAILED
    error: str = ""

    def line(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the line of `predictions.jsonl`."""
        name = None if self.label is None else class_names[self.label]
        values = {"image": self.image, "answer": self.answer, "class": name, "how": self.how}
        return values | ({"error": self.error} if self.error else {})


def predict(
    dataset: Dataset, tasks: Sequence[Task], found: Mapping[str, Record]
) -> list[Prediction]:
    """Match the recorded answers of all images to classes."""
    match = AnswerMatcher(dataset.class_synonyms)
    predictions = []
    for task in tasks:
        record = found[task.key]
        if record.error:
            predictions.append(Prediction(task.image, None, None, FAILED, record.error))
        else:
            predictions.append(Prediction(task.image, record.text, *match(record.text)))
    return predictions


def summarize(test: Split, dataset: Dataset, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the metrics of `results.json`, in the format of `lattec_jax.train`.

    The accuracy is reported as that of the "adapted" model, the method's final result. There is no
    CLIP before it ("zero_shot" is null), and no top-5 of a single answer.
    """
    classes = len(dataset.class_names)
    labels = np.array([_NO_CLASS if p.label is None else p.label for p in predictions])
    fractions = evaluation_metrics.class_fractions(labels[labels != _NO_CLASS], classes)
    adapted = per_class = None
    if test.labels is not None:
        adapted = {"top1": float(np.mean(labels == test.labels)), "top5": None}
        per_class = evaluation_metrics.per_class_accuracy(labels, test.labels, classes)
    failed = {p.image: p.error for p in predictions if p.how == FAILED}
    counts = Counter(p.how for p in predictions)
    unmatched = [{"image": p.image, "answer": p.answer} for p in predictions if p.how == UNMATCHED]
    answers = {how: counts[how] for how in (EXACT, NORMALIZED, CLOSEST, UNMATCHED, FAILED)}
    return {
        "n_train": 0,  # training images are not used
        "n_test": len(predictions),
        "unreadable": list(failed),  # counted as wrong
        "n_left_out": {"train": 0, "test": 0},
        "zero_shot": None,
        "adapted": adapted,
        "per_class": {"zero_shot": None, "adapted": per_class},
        "answers": {**answers, "first_unmatched": unmatched[:MAX_UNMATCHED]},
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


def table(
    class_names: Sequence[str],
    accuracy: Mapping[str, float | None] | None,
    per_class: Sequence[float | None] | None,
    fractions: Sequence[float],
    images: int,
) -> str:
    """Format the accuracy, overall and per class; without labels each class's fraction."""
    width = max(len("top1"), *map(len, class_names)) + 2
    if accuracy is None or per_class is None:
        title = f"fraction of the answers per class, {images} images (there are no labels)"
        rows = list(zip(class_names, fractions, strict=True))
    else:
        title = f"accuracy on {images} test images"
        rows = [("top1", accuracy["top1"]), *zip(class_names, per_class, strict=True)]
    metrics = (f"{n:{width}}{'no images' if v is None else f'{v:.1%}':>10}" for n, v in rows)
    return "\n".join([title, *metrics])


def report(found: Mapping[str, Any]) -> str:
    """Format `results.json` for the terminal."""
    answers = found["answers"]
    steps = (f"{how} {count}" for how, count in answers.items() if how != "first_unmatched")
    lines = [found["table"], f"answers: {', '.join(steps)}"]
    for first in answers["first_unmatched"]:
        lines.append(f"  unmatched: {first['image']}: {first['answer']!r}")
    return "\n".join(lines) + list_failures(found["failed"])
