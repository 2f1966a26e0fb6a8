"""Alarms: signs that adaptation fails, with their thresholds. All but two need no labels.

The thresholds in the next table were chosen on the demo (10 classes, 1,000 training digits, 60
steps; versions of JAX round differently, which changes where a collapsing run ends). Healthy runs:
LatteCLIP with seeds 0 to 4, top-1 73.4% to 76.7% (zero-shot: 60.9%). Failing runs: FLYP at learning
rate 1e-3, of which seeds 0 (45.7%), 2 and 3 (one class, 10%) and 4 (21.8%) fail and seed 1 (60.1%)
does not; LatteCLIP at learning rate 1e-2 (25.6%), and with shuffled descriptions (70.1%).

    metric                                    healthy      failing                    threshold
    batch entropy / zero-shot batch entropy   0.99 and up  0.0 (2, 3), 0.7 (4)        below 0.8
    class fraction after / before             0.57 and up  0 for one to nine classes  below 0.1
    class fraction / max(before, uniform)     up to 1.1    10 (2, 3), 3.3 (4)         above 3
    agreement with the frozen model           0.84 - 0.86  0.43 and less              below 0.5
    separation of the class weights           1.06 - 1.3   0.05 (2), 0.01 (1e-2)      below 0.3
    mixer weight / class distance             0.3 and up   0.08 - 0.13 (shuffled)     below 0.15
    fraction of images with a description     1            depends on the removal     below 0.95

Each threshold is closer to the failing runs, because a false alarm costs trust. A run that lost
only a little accuracy (FLYP, seed 1) does not trigger an alarm. Other data sets may need other
thresholds. In particular, agreement is bounded by the accuracy of the frozen model: if that is 45%,
a perfect model agrees on at most 45% of the images. That alarm asks the user to look at the
changes; it does not mean that the run failed. `tests/reporting/test_health_runs.py` checks that
other seeds trigger no alarm.

Those alarms compare with the zero-shot model, so they miss a model that was useless from the start.
The other three look at the adapted model itself, or measure. Their thresholds are conventions:

    metric                                    threshold      why
    fraction of the largest class             0.99 and up    less can be right on unbalanced data
    probability of the accuracy by chance     0.05 and up    one-sided binomial test against 1/C
    top-1 accuracy, zero-shot minus adapted   above 0.02     FLYP, seed 1, lost 0.01; the loss must
                                                             also be above its standard error

One standard error is little evidence, but a loss that was measured is worth a look. The last two
read the labels of the test images, where these exist. The labels are used for these messages and
for the reported accuracy only, never for training or for a choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from lattec_jax.data.evaluation_metrics import class_fractions
from lattec_jax.reporting.health_metrics import (
    Baseline,
    LogLine,
    class_distance,
    nearest_classes,
    window_mean,
)

MIN_ENTROPY_RATIO = 0.8  # entropy of the predictions in a batch / that of zero-shot
MIN_CLASS_RATIO = 0.1  # fraction of a class / its zero-shot fraction, or it has vanished
MIN_CLASS_IMAGES = 10  # a class with fewer zero-shot images is not counted as vanished
MIN_VANISHED_FRACTION = 0.1  # of all classes, to trigger the alarm
MAX_CLASS_RATIO = 3.0  # fraction of a class / the larger of its zero-shot and the uniform fraction
MIN_AGREEMENT = 0.5  # fraction of images with the frozen model's label
MIN_SEPARATION = 0.3  # relative to the start
MIN_WEIGHT_RATIO = 0.15  # mixer weight / class distance
MIN_COVERAGE = 0.95  # fraction of images with a description
MAX_LARGEST_FRACTION = 0.99  # fraction of images in the largest class, to trigger the alarm
MIN_PREDICTIONS = 10  # with fewer training images, a single class may be right
MAX_CHANCE_PROBABILITY = 0.05  # that random predictions are at least as accurate
MAX_ACCURACY_LOSS = 0.02  # of top-1


class Alarm(NamedTuple):
    """A metric that crossed its threshold."""

    name: str
    metric: str
    value: float
    threshold: float
    classes: tuple[str, ...]  # that are affected
    message: str
    advice: str


class LabeledTest(NamedTuple):
    """Labels of the test images, and what both models predict for them."""

    labels: Int[np.ndarray, " T"]
    zero_shot: Int[np.ndarray, " T"]
    adapted: Int[np.ndarray, " T"]


def window_alarms(baseline: Baseline, lines: Sequence[LogLine]) -> list[Alarm]:
    """Return the alarms of `WINDOW` consecutive lines of the log."""
    alarms, step = [], int(lines[-1]["step"] or 0)
    entropy = window_mean(lines, "batch_class_entropy")
    if entropy is not None and entropy < MIN_ENTROPY_RATIO * (expected := baseline.batch_entropy):
        known = range(len(baseline.class_names))
        largest = Counter(line.get("batch_largest_class") for line in lines).most_common(1)[0][0]
        classes = (baseline.class_names[int(largest or 0)],) if largest in known else ()
        alarms.append(_prediction_collapse(entropy / max(expected, 1e-6), classes, step))
    agreement = window_mean(lines, "agreement_with_frozen")
    if agreement is not None and agreement < MIN_AGREEMENT:
        alarms.append(_pseudo_label_drift(agreement, f"up to step {step}"))
    separation = window_mean(lines, "separation")
    if separation is not None and separation < MIN_SEPARATION:
        alarms.append(_prototype_collapse(separation, (), f"up to step {step}"))
    # Relative to the current class distance: collapsed prototypes do not blame the descriptions.
    distance = baseline.class_distance * max(1e-3, 1.0 if separation is None else separation)
    for kind in baseline.coverage:
        weight = window_mean(lines, f"weight_{kind}")
        if weight is not None and weight < MIN_WEIGHT_RATIO * distance:
            alarms.append(_uninformative_descriptions(kind, weight / distance, step))
    return alarms


def final_alarms(
    baseline: Baseline,
    class_weights: Float[np.ndarray, "C D"],
    predictions: Int[np.ndarray, " N"],
) -> list[Alarm]:
    """Return the alarms of the adapted model on all training images."""
    alarms, names = [], baseline.class_names
    before = np.asarray(baseline.class_fractions)
    after = np.asarray(class_fractions(predictions, len(names)))
    large_enough = before * len(predictions) >= MIN_CLASS_IMAGES
    vanished = np.flatnonzero(large_enough & (after < MIN_CLASS_RATIO * before)).tolist()
    if vanished and len(vanished) >= MIN_VANISHED_FRACTION * len(names):
        alarms.append(
            _vanished_classes(len(vanished) / len(names), tuple(names[c] for c in vanished))
        )
    ratios = after / np.maximum(before, 1 / len(names))
    dominant = np.flatnonzero(ratios > MAX_CLASS_RATIO).tolist()
    if dominant:
        alarms.append(_dominant_classes(float(ratios.max()), tuple(names[c] for c in dominant)))
    largest = int(after.argmax())
    enough = len(names) > 1 and len(predictions) >= MIN_PREDICTIONS
    if enough and after[largest] >= MAX_LARGEST_FRACTION:
        alarms.append(_single_class(float(before[largest]), float(after[largest]), names[largest]))
    agreement = float(np.mean(predictions == baseline.labels))
    if agreement < MIN_AGREEMENT:
        change = np.abs(after - before)
        order: list[int] = np.argsort(-change, kind="stable")[:5].tolist()
        changed = tuple(names[c] for c in order if change[c] > 0)
        alarms.append(_pseudo_label_drift(agreement, "of the training set", changed))
    if (separation := class_distance(class_weights) / baseline.class_distance) < MIN_SEPARATION:
        similarity, other = nearest_classes(class_weights)
        closest = np.argsort(-similarity, kind="stable")[:6].tolist()
        pairs = sorted({tuple(sorted((c, int(other[c])))) for c in closest})
        merged = tuple(f"{names[a]} and {names[b]}" for a, b in pairs)
        alarms.append(_prototype_collapse(separation, merged, "at the end"))
    for kind, fraction in baseline.coverage.items():
        if fraction < MIN_COVERAGE:
            alarms.append(_missing_descriptions(kind, fraction))
    return alarms


def accuracy_alarms(test: LabeledTest, num_classes: int) -> list[Alarm]:
    """Return the alarms of the adapted model on labeled test images."""
    alarms, count = [], len(test.labels)
    before, after = test.zero_shot == test.labels, test.adapted == test.labels
    lost = int(before.sum()) - int(after.sum())
    standard_error = np.sum(before != after) ** 0.5  # of the images lost by chance, as in McNemar's
    if lost > max(MAX_ACCURACY_LOSS * count, standard_error):
        alarms.append(_accuracy_loss(float(before.mean()), float(after.mean()), count))
    right = int(after.sum())
    probability = float(scipy.special.bdtrc(right - 1, count, 1 / num_classes))
    if num_classes > 1 and probability >= MAX_CHANCE_PROBABILITY:
        alarms.append(_accuracy_at_chance(probability, right / count, count, num_classes))
    return alarms


def _prediction_collapse(ratio: float, classes: tuple[str, ...], step: int) -> Alarm:
    return Alarm(
        "prediction collapse", "entropy of the predictions / zero-shot entropy", ratio,
        MIN_ENTROPY_RATIO, classes,
        f"Up to step {step}, the predictions in the batches concentrate on few classes.",
        "Lower --config.train.learning_rate (in another --workdir). A method with prototypes and "
        "the frozen model's pseudo-labels (latteclip) is more stable than one without.",
    )  # fmt: skip


def _vanished_classes(fraction: float, classes: tuple[str, ...]) -> Alarm:
    return Alarm(
        "vanished classes", "fraction of classes that vanished", fraction, MIN_VANISHED_FRACTION,
        classes,
        f"These classes lost more than {1 - MIN_CLASS_RATIO:.0%} of the images that zero-shot "
        "predicts for them.",
        "Look at the images that changed class. Lower --config.train.learning_rate, or give "
        "these classes more specific names or templates.",
    )  # fmt: skip


def _dominant_classes(ratio: float, classes: tuple[str, ...]) -> Alarm:
    return Alarm(
        "dominant classes", "class fraction / the larger of its zero-shot and uniform fraction",
        ratio, MAX_CLASS_RATIO, classes,
        f"These classes are predicted for more than {MAX_CLASS_RATIO:g} times as many images as by "
        f"zero-shot, and more than {MAX_CLASS_RATIO:g} times as many as in a uniform distribution.",
        "Look at the images that changed class. Lower --config.train.learning_rate, or train for "
        "fewer steps (--config.train.max_steps).",
    )  # fmt: skip


def _single_class(before: float, after: float, name: str) -> Alarm:
    return Alarm(
        "single class", "fraction of the training images in the largest class", after,
        MAX_LARGEST_FRACTION, (name,),
        f"{after:.1%} of the training images are predicted as one class (zero-shot: {before:.1%}).",
        "If the images show several classes, this model does not distinguish them. Where zero-shot "
        "does not either, training cannot help: check the class names, the templates "
        "(--config.templates) and the weights. Otherwise lower --config.train.learning_rate.",
    )  # fmt: skip


def _accuracy_loss(before: float, after: float, count: int) -> Alarm:
    return Alarm(
        "accuracy loss", "top-1 accuracy, zero-shot minus adapted", before - after,
        MAX_ACCURACY_LOSS, (),
        f"The top-1 accuracy on {count:,} test images fell from {before:.1%} to {after:.1%}.",
        "Use the zero-shot model, or lower --config.train.learning_rate (in another --workdir). "
        "Do not choose between many runs by test labels: the accuracy of the best one is then too "
        "high.",
    )  # fmt: skip


def _accuracy_at_chance(probability: float, top1: float, count: int, num_classes: int) -> Alarm:
    return Alarm(
        "accuracy at chance", "probability that random predictions are at least as accurate",
        probability, MAX_CHANCE_PROBABILITY, (),
        f"The adapted model's top-1 accuracy, {top1:.1%} on {count:,} test images, is not "
        f"significantly better than random predictions ({1 / num_classes:.1%} for {num_classes} "
        "classes).",
        "Check the labels, the class names, the templates (--config.templates) and the weights. "
        "Where zero-shot is at chance too, its pseudo-labels teach nothing. With few test images, "
        "label more.",
    )  # fmt: skip


def _pseudo_label_drift(agreement: float, when: str, classes: tuple[str, ...] = ()) -> Alarm:
    return Alarm(
        "pseudo-label drift", "agreement with the frozen model", agreement, MIN_AGREEMENT, classes,
        f"The pseudo-labels differ from those of the frozen model: the two agree on "
        f"{agreement:.0%} of the images {when}.",
        "This can be intended if the frozen model is poor on these images: look at the images that "
        "changed class. Otherwise lower --config.train.learning_rate, or keep the frozen model's "
        "labels in --config.method.labels.",
    )  # fmt: skip


def _prototype_collapse(separation: float, classes: tuple[str, ...], when: str) -> Alarm:
    return Alarm(
        "prototype collapse", "separation of the classes, relative to the start", separation,
        MIN_SEPARATION, classes,
        f"The class weights moved close to each other {when}: the distance between classes is "
        f"{separation:.0%} of that at the start.",
        "Lower --config.train.learning_rate, or raise --config.method.momentum and "
        "--config.method.alpha, which stabilize the prototypes.",
    )  # fmt: skip


def _uninformative_descriptions(kind: str, ratio: float, step: int) -> Alarm:
    return Alarm(
        f"uninformative {kind} descriptions", "mixer weight / distance to the nearest class", ratio,
        MIN_WEIGHT_RATIO, (),
        f"Up to step {step}, the {kind} descriptions hardly distinguish the classes, so their "
        "mixer weights are almost zero.",
        "Read some of them (python -m captioning.browse --workdir=RUN). Ask for what distinguishes "
        f"your classes in config.descriptions.prompts.{kind}, or remove this kind from "
        "--config.method.texts.",
    )  # fmt: skip


def _missing_descriptions(kind: str, fraction: float) -> Alarm:
    return Alarm(
        f"missing {kind} descriptions", "fraction of images with a description", fraction,
        MIN_COVERAGE, (),
        f"{1 - fraction:.0%} of the training images have no {kind} description and are trained "
        "without it.",
        "Repeat python -m captioning.describe with this run's arguments; it generates the missing "
        "descriptions.",
    )  # fmt: skip
