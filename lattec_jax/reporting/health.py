"""Is a run healthy? Figures that need no label, alarms in plain words, and a verdict.

Adapting without labels means that no accuracy tells when it goes wrong. What can be seen without
labels is here, as pure functions of arrays and of the lines of the log; no label is ever read.

How the thresholds were set, all on the demo (10 classes, 1,000 training digits, 60 steps; later
versions round otherwise, which changes where a collapsing run ends). Healthy: LatteCLIP of seeds 0
to 4, top-1 73.4% to 76.7% (zero-shot: 60.9%). Failing: FLYP at learning rate 1e-3, of which seeds 0
(45.7%), 2 and 3 (one class, 10%) and 4 (21.8%) fail and seed 1 (60.1%) does not; LatteCLIP at
learning rate 1e-2 (25.6%), and with the descriptions of other images (70.1%).

    figure                                  healthy        failing                     threshold
    entropy of batches, against zero-shot   0.99 and more  0.0 (2, 3), 0.7 (4)         below 0.8
    share of a class after / before         0.57 and more  0 for one to nine classes   below 0.1
    share / the larger of before and even   at most 1.1    10 (2, 3), 3.3 (4)          above 3
    agreement with the frozen model         0.84 to 0.86   0.43 and less               below 0.5
    separation of the class vectors         1.06 to 1.3    0.05 (2), 0.01 (1e-2)       below 0.3
    weight of a text / distance of classes  0.3 and more   0.08 to 0.13 (of others)    below 0.15
    images with a description               1              as many as one takes away   below 0.95

Each lies between the two, nearer to the failing runs, for an alarm on a good run costs trust. A run
that has lost little, as FLYP's seed 1, is not seen. Other sets may lie elsewhere. Agreement above
all is bounded by how good the frozen model was: if it is right on 45% of the images, a perfect
model agrees with it on no more; that alarm asks to look and does not say that the run failed.
Seeds that were not used here hold the alarms to be silent (`tests/reporting/test_health_runs.py`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from lattec_jax.data import evaluation_metrics

WINDOW = 3  # lines of the log whose mean is looked at
ENTROPY = 0.8  # of a batch's predictions, against zero-shot's
EMPTIED, SWALLOWED = 0.1, 3.0  # share of a class after training, against before
FEWEST = 10  # images that zero-shot gives a class before its emptying counts
EMPTIED_CLASSES = 0.1  # of all classes
AGREEMENT = 0.5
SEPARATION = 0.3
WEIGHT = 0.15
COVERAGE = 0.95
Record = Mapping[str, float | None]  # a line of the log


class Alarm(NamedTuple):
    """Something to look at."""

    name: str
    metric: str  # what was compared
    value: float
    threshold: float
    classes: tuple[str, ...]  # that it concerns
    message: str
    do: str


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What a run is compared with, known before the first step. N training images, C classes."""

    class_names: Sequence[str]
    vectors: Float[np.ndarray, "C D"]  # of the classes, by the pre-trained model
    labels: Int[np.ndarray, " N"]  # zero-shot pseudo-labels
    batch_size: int
    coverage: Mapping[str, float]  # kind of description -> share of the images that have one

    @cached_property
    def fractions(self) -> list[float]:
        """Of the training images, per class by zero-shot."""
        return evaluation_metrics.class_fractions(self.labels, len(self.class_names))

    @cached_property
    def batch_entropy(self) -> float:
        """The mean entropy of zero-shot labels in random batches: smaller than that of all."""
        rng, classes = np.random.default_rng(0), len(self.class_names)
        batches = (rng.choice(self.labels, self.batch_size) for _ in range(32))
        return float(
            np.mean(
                [
                    evaluation_metrics.entropy(evaluation_metrics.class_fractions(b, classes))
                    for b in batches
                ]
            )
        )

    @cached_property
    def distance(self) -> float:
        """Mean over classes of 1 − cosine to the nearest other class."""
        return _distance(self.vectors)


# -------------------------------------------------------------------------------------- metrics


def nearest(
    vectors: Float[np.ndarray, "C D"],
) -> tuple[Float[np.ndarray, " C"], Int[np.ndarray, " C"]]:
    """Each class's largest cosine to another class, and which class that is."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.max(axis=1), cosines.argmax(axis=1)


def _distance(vectors: Float[np.ndarray, "C D"]) -> float:
    return max(float(np.mean(1 - nearest(vectors)[0])), 1e-6)


def prototype_metrics(reference: Reference, now: Float[np.ndarray, "C D"]) -> dict[str, float]:
    """How far the classes' unit vectors moved, and how near they are to one another.

    `drift_mean` and `drift_largest` are of 1 − cosine to the start, `nearest_similarity` is the
    largest cosine between two classes, `separation` the mean over classes of 1 − cosine to the
    nearest other class, divided by what it was at the start.
    """
    drift = evaluation_metrics.drift(reference.vectors, now)
    return {
        "drift_mean": float(np.mean(drift)),
        "drift_largest": max(drift),
        "nearest_similarity": float(nearest(now)[0].max()),
        "separation": _distance(now) / reference.distance,
    }


def final_metrics(
    reference: Reference,
    vectors: Float[np.ndarray, "C D"],
    predictions: Int[np.ndarray, " N"],
    log: Sequence[Record],
) -> dict[str, float]:
    """All metrics at the end: on the whole training set, and what the log ends with."""
    fractions = evaluation_metrics.class_fractions(predictions, len(reference.class_names))
    metrics = {
        "agreement_with_frozen": float(np.mean(predictions == reference.labels)),
        "class_entropy": evaluation_metrics.entropy(fractions),
        "class_entropy_zero_shot": evaluation_metrics.entropy(reference.fractions),
        **prototype_metrics(reference, vectors),
        **{f"coverage_{kind}": fraction for kind, fraction in reference.coverage.items()},
    }
    names = [n for line in log for n in line if n.startswith("weight_")]
    for name in dict.fromkeys([*names, "gradient_norm", "logit_scale"]):
        if (value := _mean(log[-WINDOW:], name)) is not None:
            metrics[name] = value
    return metrics


def _mean(records: Sequence[Record], name: str) -> float | None:
    """Of a figure of the log over some lines; None unless there are `WINDOW` of it."""
    values = [r[name] for r in records if r.get(name) is not None]
    return float(np.mean(values)) if len(values) == WINDOW else None


# --------------------------------------------------------------------------------------- alarms


def window_alarms(reference: Reference, records: Sequence[Record]) -> list[Alarm]:
    """What `WINDOW` lines of the log, one after the other, set off."""
    found, step = [], int(records[-1]["step"])
    entropy = _mean(records, "batch_class_entropy")
    if entropy is not None and entropy < ENTROPY * (expected := reference.batch_entropy):
        known = range(len(reference.class_names))
        largest = Counter(r.get("batch_largest_class") for r in records).most_common(1)[0][0]
        classes = (reference.class_names[int(largest)],) if largest in known else ()
        found.append(_collapse(entropy / max(expected, 1e-6), classes, step))
    agreement = _mean(records, "agreement_with_frozen")
    if agreement is not None and agreement < AGREEMENT:
        found.append(_runaway(agreement, f"up to step {step}"))
    separation = _mean(records, "separation")
    if separation is not None and separation < SEPARATION:
        found.append(_merged(separation, (), f"up to step {step}"))
    # Against the classes' distance at this time: merged classes say nothing of the descriptions.
    distance = reference.distance * max(1e-3, 1.0 if separation is None else separation)
    for kind in reference.coverage:
        weight = _mean(records, f"weight_{kind}")
        if weight is not None and weight < WEIGHT * distance:
            found.append(_empty_words(kind, weight / distance, step))
    return found


def final_alarms(
    reference: Reference,
    vectors: Float[np.ndarray, "C D"],
    predictions: Int[np.ndarray, " N"],
) -> list[Alarm]:
    """What the whole training set and the classes' vectors set off at the end."""
    found, names = [], reference.class_names
    before = np.asarray(reference.fractions)
    after = np.asarray(evaluation_metrics.class_fractions(predictions, len(names)))
    counts = before * len(predictions) >= FEWEST
    emptied = np.flatnonzero(counts & (after < EMPTIED * before))
    grown = after / np.maximum(before, 1 / len(names))
    swallowed = np.flatnonzero(grown > SWALLOWED)
    if len(emptied) > 0 and len(emptied) >= EMPTIED_CLASSES * len(names):
        found.append(_emptied(len(emptied) / len(names), tuple(names[c] for c in emptied)))
    if len(swallowed):
        found.append(_swallowed(float(grown.max()), tuple(names[c] for c in swallowed)))
    agreement = float(np.mean(predictions == reference.labels))
    if agreement < AGREEMENT:
        moved = np.abs(after - before)
        most = [names[c] for c in np.argsort(-moved, kind="stable")[:5] if moved[c] > 0]
        found.append(_runaway(agreement, "on the training set at the end", tuple(most)))
    if (separation := _distance(vectors) / reference.distance) < SEPARATION:
        similarity, other = nearest(vectors)
        near = np.argsort(-similarity, kind="stable")[:6]
        pairs = {tuple(sorted((int(c), int(other[c])))) for c in near}
        merged = tuple(f"{names[a]} and {names[b]}" for a, b in sorted(pairs))
        found.append(_merged(separation, merged, "at the end"))
    for kind, fraction in reference.coverage.items():
        if fraction < COVERAGE:
            found.append(_uncovered(kind, fraction))
    return found


def _collapse(ratio: float, classes: tuple[str, ...], step: int) -> Alarm:
    return Alarm(
        "collapse while training", "entropy of the predictions / zero-shot's", ratio, ENTROPY,
        classes, f"Up to step {step} the predictions of the batches crowd into few classes.",
        "Lower --config.train.learning_rate (in another --workdir); a method with prototypes and "
        "the frozen model's pseudo-labels (latteclip) is steadier than one without.",
    )  # fmt: skip


def _emptied(fraction: float, classes: tuple[str, ...]) -> Alarm:
    return Alarm(
        "emptied classes", "share of the classes that emptied", fraction, EMPTIED_CLASSES, classes,
        f"These classes have lost more than {1 - EMPTIED:.0%} of the images that zero-shot gave "
        "them.",
        "Look at the images that changed class. Lower --config.train.learning_rate, or give "
        "these classes names or templates that say more.",
    )  # fmt: skip


def _swallowed(growth: float, classes: tuple[str, ...]) -> Alarm:
    return Alarm(
        "swallowing classes", "share of the class / its share before", growth, SWALLOWED, classes,
        f"These classes have more than {SWALLOWED:g} times the images that zero-shot gave them, or "
        "than an even share.",
        "Look at the images that changed class. Lower --config.train.learning_rate, or train "
        "fewer steps (--config.train.max_steps).",
    )  # fmt: skip


def _runaway(agreement: float, when: str, classes: tuple[str, ...] = ()) -> Alarm:
    return Alarm(
        "runaway pseudo-labels", "agreement with the frozen model", agreement, AGREEMENT, classes,
        f"The pseudo-labels have left the frozen model's: the two agree on {agreement:.0%} of the "
        f"images {when}.",
        "If the frozen model is known to be poor here, this may be what you want: look at the "
        "images that changed class. If not, lower --config.train.learning_rate, or keep the "
        "frozen model's labels in --config.method.labels.",
    )  # fmt: skip


def _merged(separation: float, classes: tuple[str, ...], when: str) -> Alarm:
    return Alarm(
        "merged prototypes", "separation of the classes, against the start", separation,
        SEPARATION, classes,
        f"The vectors of the classes have moved together {when}: they tell the classes apart "
        f"{separation:.0%} as far as they did at the start.",
        "Lower --config.train.learning_rate, or raise --config.method.momentum and "
        "--config.method.alpha, which hold the prototypes.",
    )  # fmt: skip


def _empty_words(kind: str, ratio: float, step: int) -> Alarm:
    return Alarm(
        f"{kind} descriptions carry nothing", "weight / distance of the nearest class", ratio,
        WEIGHT, (),
        f"Up to step {step} the {kind} descriptions hardly tell the classes apart, so they weigh "
        "almost nothing.",
        "Read some (python -m captioning.browse --config=...). Ask in "
        f"config.descriptions.prompts.{kind} for what distinguishes your classes, or leave the "
        "kind out of --config.method.texts.",
    )  # fmt: skip


def _uncovered(kind: str, fraction: float) -> Alarm:
    return Alarm(
        f"{kind} descriptions are missing", "share of the images with a description", fraction,
        COVERAGE, (),
        f"{1 - fraction:.0%} of the training images have no {kind} description and learn without.",
        "Repeat python -m captioning.describe with this run's arguments: it makes what is missing.",
    )  # fmt: skip


# -------------------------------------------------------------------------------------- verdict


def examine(
    reference: Reference,
    vectors: Float[np.ndarray, "C D"],
    predictions: Int[np.ndarray, " N"],
    log: Sequence[Record],
) -> dict[str, Any]:
    """What `results.json` holds under "health".

    Args:
        reference: of the run.
        vectors: of the classes, adapted.
        predictions: of the adapted model for the training images.
        log: all lines of `metrics.jsonl`.
    """
    alarms = {alarm.name: alarm for alarm in final_alarms(reference, vectors, predictions)}
    lines = trained_lines(log)
    for end in range(WINDOW, len(lines) + 1):
        for alarm in window_alarms(reference, lines[end - WINDOW : end]):
            alarms.setdefault(alarm.name, alarm)
    metrics = final_metrics(reference, vectors, predictions, lines)
    fractions = evaluation_metrics.class_fractions(predictions, len(reference.class_names))
    return {
        "verdict": verdict(metrics, list(alarms)),
        "alarms": [{**a._asdict(), "classes": list(a.classes)} for a in alarms.values()],
        "metrics": metrics,
        "class_fractions": {"zero_shot": reference.fractions, "adapted": fractions},
    }


def trained_lines(log: Sequence[Record]) -> list[Record]:
    """The lines that hold metrics of a step, not of an evaluation alone."""
    return [line for line in log if line.get("loss") is not None]


def verdict(metrics: Mapping[str, float], alarms: Sequence[str]) -> str:
    """What looks healthy and what to look at, a line each."""
    entropy, before = metrics["class_entropy"], metrics["class_entropy_zero_shot"]
    healthy = [
        f"the model agrees with the frozen one on {metrics['agreement_with_frozen']:.0%} of the "
        "training images",
        f"its predictions spread over the classes with entropy {entropy:.2f} (zero-shot "
        f"{before:.2f}; 1 is even)",
        f"the classes are {metrics['separation']:.0%} as far apart as they were",
    ]
    if not alarms:
        return "Healthy: no alarm was set off.\n" + _sentence(healthy)
    count = "One alarm was" if len(alarms) == 1 else f"{len(alarms)} alarms were"
    return (
        f"Look before you use this model: {count} set off.\nTo look at: {', '.join(alarms)}.\n"
        + _sentence(["for the record, " + healthy[0], *healthy[1:]])
    )


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


class Watch:
    """Prints each alarm once, when the log first sets it off.

    Args:
        reference: of the run.
        log: lines that an interrupted run wrote; their alarms have been printed.
        speaks: False: it watches without a word, where another process prints the alarms.
    """

    def __init__(self, reference: Reference, log: Sequence[Record] = (), speaks: bool = True):
        self._speaks = speaks
        self._reference = reference
        self._lines = trained_lines(log)
        self._said: set[str] = set()
        for end in range(WINDOW, len(self._lines) + 1):
            self._said |= {
                a.name for a in window_alarms(reference, self._lines[end - WINDOW : end])
            }
        self._lines = self._lines[-WINDOW:]

    @property
    def last_finite(self) -> int:
        """The last step that was logged with a finite loss; 0: none yet."""
        return int(self._lines[-1]["step"]) if self._lines else 0

    def prototypes(self, vectors: Float[np.ndarray, "C D"] | None) -> dict[str, float]:
        """`prototype_metrics` of a method that keeps prototypes."""
        return {} if vectors is None else prototype_metrics(self._reference, np.asarray(vectors))

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a line of the log that was just written; its values may be NumPy scalars."""
        line: Record = {**{name: float(v) for name, v in metrics.items()}, "step": step}
        self._lines = [*self._lines, *trained_lines([line])][-WINDOW:]
        if len(self._lines) < WINDOW or not self._speaks:
            return
        for alarm in window_alarms(self._reference, self._lines):
            if alarm.name not in self._said:
                self._said.add(alarm.name)
                tqdm.write(f"warning: {alarm.name}: {alarm.message} {alarm.do}", file=sys.stderr)
