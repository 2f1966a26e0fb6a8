"""Health of a run: alarms during training and at the end, and a verdict in plain words."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from lattec_jax.data.evaluation_metrics import class_fractions
from lattec_jax.reporting.alarms import (
    Alarm,
    LabeledTest,
    accuracy_alarms,
    final_alarms,
    window_alarms,
)
from lattec_jax.reporting.health_metrics import (
    WINDOW,
    Baseline,
    LogLine,
    final_metrics,
)

MIN_CHANGED_FRACTION = 0.01  # of the training images; below, the model hardly changed


def health_report(
    baseline: Baseline,
    class_weights: Float[np.ndarray, "C D"],
    predictions: Int[np.ndarray, " N"],
    log: Sequence[LogLine],
    test: LabeledTest | None = None,
    trained: bool = True,
) -> dict[str, Any]:
    """Return the entry "health" of `results.json`.

    Args:
        class_weights: of the adapted model.
        predictions: of the adapted model for the training images.
        log: all lines of `metrics.jsonl`.
        test: labeled test images, if there are any. Only the alarms on accuracy read them.
        trained: whether training could change the model.
    """
    measured = accuracy_alarms(test, len(baseline.class_names)) if test else []
    at_end = [*measured, *final_alarms(baseline, class_weights, predictions)]
    alarms = {alarm.name: alarm for alarm in at_end}
    lines = _training_lines(log)
    for alarm in _logged_alarms(baseline, lines):
        alarms.setdefault(alarm.name, alarm)
    metrics = final_metrics(baseline, class_weights, predictions, lines)
    adapted = class_fractions(predictions, len(baseline.class_names))
    return {
        "verdict": verdict(
            metrics, list(alarms), test is not None, _notes(metrics, lines, trained)
        ),
        "alarms": [{**a._asdict(), "classes": list(a.classes)} for a in alarms.values()],
        "metrics": metrics,
        "class_fractions": {"zero_shot": baseline.class_fractions, "adapted": adapted},
    }


def _logged_alarms(baseline: Baseline, lines: Sequence[LogLine]) -> Iterator[Alarm]:
    for end in range(WINDOW, len(lines) + 1):
        yield from window_alarms(baseline, lines[end - WINDOW : end])


def _training_lines(log: Sequence[LogLine]) -> list[LogLine]:
    """Return the lines with metrics of a training step, without those of an evaluation only."""
    return [line for line in log if line.get("loss") is not None]


def verdict(
    metrics: Mapping[str, float], alarms: Sequence[str], measured: bool, notes: Sequence[str] = ()
) -> str:
    """Return a summary of a few lines: the alarms by name, and the main metrics.

    Args:
        measured: whether there are labeled test images.
        notes: lines at the end.
    """
    agreement = metrics["agreement_with_frozen"]
    entropy, before = metrics["class_entropy"], metrics["class_entropy_zero_shot"]
    summary = (
        f"The model agrees with the frozen model on {_percent(agreement)} of the "
        f"training images; the entropy of its predictions is {entropy:z.2f} (zero-shot "
        f"{before:z.2f}; uniform 1); the distance between classes is {metrics['separation']:.0%} "
        "of that at the start."
    )
    summary = "\n".join([summary, *notes])
    if not alarms:
        unchecked = (
            " Alarms detect collapse and drift, not wrong classes; accuracy is not measured."
        )
        return f"Healthy: no alarms.{'' if measured else unchecked}\n{summary}"
    count = "1 alarm" if len(alarms) == 1 else f"{len(alarms)} alarms"
    return f"Check this model before you use it: {count}.\nAlarms: {', '.join(alarms)}.\n{summary}"


def _percent(fraction: float) -> str:
    """Return a percentage, in which 299 of 300 is not 100%."""
    return f"{fraction:.0%}" if fraction in (0, 1) or 0.01 < fraction < 0.99 else f"{fraction:.1%}"


def _notes(metrics: Mapping[str, float], lines: Sequence[LogLine], trained: bool) -> list[str]:
    """Return what is no alarm, but should be known. `trained`: see `health_report`."""
    if not trained:
        return ["Nothing was trained: this is the zero-shot model."]
    notes, changed = [], 1 - metrics["agreement_with_frozen"]
    if len(lines) < WINDOW:
        notes.append(
            f"The run is too short to judge batches and descriptions: {WINDOW} logged steps are "
            f"needed, found {len(lines)} (config.train.max_steps, config.log_every)."
        )
    if changed < MIN_CHANGED_FRACTION:
        notes.append(
            f"The model hardly changed: only {changed:.1%} of the training images changed class "
            f'(below {MIN_CHANGED_FRACTION:.0%}). See docs/trust.md, "Nothing changed. What now?"'
        )
    return notes


class HealthMonitor:
    """Prints each alarm when the log triggers it for the first time, on the main process only.
    Alarms of the lines that an interrupted run wrote (`log`) are not printed again."""

    def __init__(self, baseline: Baseline, log: Sequence[LogLine] = (), print_alarms: bool = True):
        self._baseline = baseline
        self._print_alarms = print_alarms
        lines = _training_lines(log)
        self._printed = {alarm.name for alarm in _logged_alarms(baseline, lines)}
        self._lines = lines[-WINDOW:]

    @property
    def last_finite_step(self) -> int:
        """The last step that was logged with a finite loss, or 0."""
        return int(self._lines[-1]["step"] or 0) if self._lines else 0

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Check a line that was just written to the log. Values may be NumPy scalars."""
        line: LogLine = {**{name: float(v) for name, v in metrics.items()}, "step": step}
        self._lines = [*self._lines, *_training_lines([line])][-WINDOW:]
        if len(self._lines) < WINDOW or not self._print_alarms:
            return
        for alarm in window_alarms(self._baseline, self._lines):
            if alarm.name not in self._printed:
                self._printed.add(alarm.name)
                tqdm.write(
                    f"warning: {alarm.name}: {alarm.message} {alarm.advice}", file=sys.stderr
                )
