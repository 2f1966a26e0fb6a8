"""Each alarm on arrays that trigger it; no alarm for a healthy run."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lattec_jax import train_loop
from lattec_jax.reporting import alarms as thresholds
from lattec_jax.reporting.alarms import (
    Alarm,
    LabeledTest,
    accuracy_alarms,
    final_alarms,
    window_alarms,
)
from lattec_jax.reporting.health import HealthMonitor, health_report
from lattec_jax.reporting.health_metrics import Baseline, nearest_classes
from lattec_jax.runtime.errors import TrainingError
from tests.runs import CLASSES, run

NAMES = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
COUNT = 1000


def start(coverage: float = 1.0) -> Baseline:
    """Ten classes at right angles with a hundred images each."""
    labels = np.repeat(np.arange(10), COUNT // 10).astype(np.int32)
    return Baseline(NAMES, np.eye(10, 12, dtype=np.float32), labels, 128, {"image": coverage})


def records(**changed: float) -> list[dict[str, float]]:
    """Three lines of the log of a healthy run, with some metrics changed."""
    healthy = {
        "loss": 2.0,
        "batch_class_entropy": 0.97,
        "batch_largest_fraction": 0.14,
        "batch_largest_class": 6.0,
        "agreement_with_frozen": 0.8,
        "separation": 1.1,
        "weight_image": 0.4,
        "weight_class": 0.5,
        "gradient_norm": 3.0,
        "logit_scale": 14.0,
    }
    return [{"step": step, **healthy, **changed} for step in (10, 20, 30)]


def names_of(alarms: list[Alarm]) -> set[str]:
    return {alarm.name for alarm in alarms}


def test_a_healthy_run_has_no_alarms():
    found = health_report(start(), start().class_weights, start().labels, records())
    assert found["alarms"] == [] and found["verdict"].startswith("Healthy: no alarms")
    metrics = found["metrics"]
    assert metrics["agreement_with_frozen"] == 1 and metrics["class_entropy"] == pytest.approx(1)
    assert metrics["drift_largest"] == pytest.approx(0) and metrics["separation"] == 1
    assert metrics["weight_image"] == pytest.approx(0.4) and metrics["coverage_image"] == 1


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("prediction collapse", {"batch_class_entropy": 0.5}),
        ("pseudo-label drift", {"agreement_with_frozen": 0.3}),
        ("prototype collapse", {"separation": 0.1}),
        ("uninformative image descriptions", {"weight_image": 0.02}),
    ],
)
def test_alarms_of_the_log(name, changed, capsys):
    (alarm,) = window_alarms(start(), records(**changed))
    assert alarm.name == name and alarm.value < alarm.threshold and alarm.advice and alarm.message
    if name == "prediction collapse":
        assert alarm.classes == ("six",)
    # During training it is printed once, as soon as there are enough lines, and is in the results.
    monitor = HealthMonitor(start())
    for line in [*records(**changed), *records(**changed)]:
        monitor.update(
            int(line["step"]), {n: np.asarray(v) for n, v in line.items()}
        )  # as in training
    assert capsys.readouterr().err.count(f"warning: {name}: ") == 1
    found = health_report(start(), start().class_weights, start().labels, records(**changed))
    assert [a["name"] for a in found["alarms"]] == [name]
    assert found["verdict"].startswith("Check this model before you use it: 1 alarm.")
    assert name in found["verdict"]
    # A resumed run does not print the alarms again that were printed before it stopped.
    continued = HealthMonitor(start(), records(**changed))
    continued.update(40, records(**changed)[0])
    assert name not in capsys.readouterr().err


def test_collapsed_prototypes_do_not_blame_the_descriptions():
    """Mixer weights shrink with the distance between the classes."""
    found = names_of(window_alarms(start(), records(separation=0.05, weight_image=0.02)))
    assert found == {"prototype collapse"}


def test_one_line_or_a_line_of_an_evaluation_is_no_alarm(capsys):
    monitor, bad = HealthMonitor(start()), records(batch_class_entropy=0.1)[0]
    monitor.update(10, bad)
    monitor.update(10, {"class_entropy": 0.2, "test_top1": 0.1})
    monitor.update(20, bad)
    assert capsys.readouterr().err == "" and monitor.last_finite_step == 20


def test_vanished_and_dominant_classes():
    labels = start().labels
    predictions = np.where(np.isin(labels, (2, 3, 4)), 7, labels)
    vanished, dominant = final_alarms(start(), start().class_weights, predictions)
    assert (vanished.name, vanished.classes) == ("vanished classes", ("two", "three", "four"))
    assert vanished.value == pytest.approx(0.3)
    assert (dominant.name, dominant.classes) == ("dominant classes", ("seven",))
    assert dominant.value == pytest.approx(4)
    # A class with fewer than ten zero-shot images may vanish.
    counted = np.where(np.arange(COUNT) < 93, 1, labels).astype(np.int32)
    few = dataclasses.replace(start(), labels=counted)
    predictions = np.where(few.labels == 0, 1, few.labels)
    assert names_of(final_alarms(few, few.class_weights, predictions)) == set()


def test_one_vanished_class_of_many_is_no_alarm():
    labels = np.repeat(np.arange(40), 25).astype(np.int32)
    many = Baseline([f"c{n}" for n in range(40)], np.eye(40), labels, 128, {})
    assert final_alarms(many, many.class_weights, np.where(labels == 3, 4, labels)) == []


def test_pseudo_label_drift_at_the_end_names_the_classes_that_changed_most():
    labels = start().labels
    predictions = (
        labels + (np.arange(COUNT) % 10 < 6)
    ) % 10  # every class loses 60% to the next one
    (alarm,) = final_alarms(start(), start().class_weights, predictions)
    assert alarm.name == "pseudo-label drift" and alarm.value == pytest.approx(0.4)
    assert alarm.classes == ()  # all class fractions are unchanged
    predictions = np.where(labels < 6, labels // 3 * 3, labels)
    predictions[:100] = 9
    predictions = np.where((labels == 6) | (labels == 7), 8, predictions)
    alarms = {a.name: a for a in final_alarms(start(), start().class_weights, predictions)}
    assert alarms["pseudo-label drift"].value == pytest.approx(0.3)
    assert set(alarms["pseudo-label drift"].classes) <= set(NAMES)


def test_prototype_collapse_names_the_pairs():
    vectors = np.eye(10, 12, dtype=np.float32)
    vectors[:, 11] = 4  # all are close to one direction, and two are closer
    vectors[5] = vectors[4] + 0.1 * vectors[5]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (alarm,) = final_alarms(start(), vectors, start().labels)
    assert alarm.name == "prototype collapse" and "four and five" in alarm.classes
    similarity, other = nearest_classes(vectors)
    cosines = vectors @ vectors.T
    expected = [max(cosines[c][d] for d in range(10) if d != c) for c in range(10)]
    np.testing.assert_allclose(similarity, expected, rtol=1e-6)
    assert other[4] == 5 and other[5] == 4
    assert alarm.value == pytest.approx(np.mean(1 - np.array(expected)), rel=1e-4)


def two_models(images: int, before: int, after: int, classes: int = 10) -> LabeledTest:
    """Predictions of which the first `before` and the first `after` are right."""
    labels = np.arange(images) % classes
    wrong, order = (labels + 1) % classes, np.arange(images)
    zero_shot, adapted = (np.where(order < right, labels, wrong) for right in (before, after))
    return LabeledTest(labels, zero_shot, adapted)


@pytest.mark.parametrize("after", [0.985, 1.0])
def test_a_single_class_is_an_alarm_also_if_zero_shot_predicts_it(after):
    """Nothing changed, so no other alarm sees it."""
    labels = np.where(np.arange(COUNT) < after * COUNT, 4, 5).astype(np.int32)
    same = dataclasses.replace(start(), labels=labels)
    alarms = final_alarms(same, same.class_weights, labels)
    assert names_of(alarms) == ({"single class"} if after == 1 else set())
    if after == 1:
        assert alarms[0].classes == ("four",) and alarms[0].value == 1
        assert "zero-shot: 100.0%" in alarms[0].message
        found = health_report(same, same.class_weights, labels, records())["verdict"]
        assert "entropy of its predictions is 0.00 (zero-shot 0.00;" in found
        few = dataclasses.replace(start(), labels=labels[:9])
        assert final_alarms(few, few.class_weights, few.labels) == []


def test_accuracy_at_chance():
    (alarm,) = accuracy_alarms(two_models(100, 11, 11), 10)
    assert alarm.name == "accuracy at chance"
    assert "11.0% on 100 test images" in alarm.message and "10.0% for 10 classes" in alarm.message
    for images, right, classes in ((100, 11, 10), (20, 0, 2), (7, 4, 3)):
        (alarm,) = accuracy_alarms(two_models(images, right, right, classes), classes)
        expected = scipy.stats.binomtest(right, images, 1 / classes, "greater").pvalue
        assert alarm.value == pytest.approx(expected) and alarm.value >= alarm.threshold
    # The smallest accuracy that random predictions reach in less than 5% of the cases.
    right = int(scipy.stats.binom.isf(0.05, 500, 0.1)) + 1
    assert names_of(accuracy_alarms(two_models(500, right - 1, right - 1), 10))
    assert accuracy_alarms(two_models(500, right, right), 10) == []
    assert accuracy_alarms(two_models(5, 5, 5, classes=1), 1) == []


def test_accuracy_loss():
    loss, chance = accuracy_alarms(two_models(100, 11, 5), 10)
    assert (loss.name, chance.name) == ("accuracy loss", "accuracy at chance")
    assert loss.value == pytest.approx(0.06) and "fell from 11.0% to 5.0%" in loss.message
    assert names_of(accuracy_alarms(two_models(1000, 700, 679), 10)) == {"accuracy loss"}
    assert accuracy_alarms(two_models(1000, 700, 681), 10) == []  # below 2 points
    assert accuracy_alarms(two_models(40, 30, 29), 10) == []  # one image is no evidence
    assert accuracy_alarms(two_models(1000, 600, 740), 10) == []
    # 13 of 100 images became wrong and 9 right: a loss of 4, which is below the root of 22.
    test, order = two_models(100, 60, 60), np.arange(100)
    right = (order >= 13) & (order < 69)
    changed = test._replace(adapted=np.where(right, test.labels, test.labels + 1))
    assert accuracy_alarms(changed, 10) == []
    right &= order != 68  # a loss of 5, which is above the root of 21
    changed = test._replace(adapted=np.where(right, test.labels, test.labels + 1))
    assert names_of(accuracy_alarms(changed, 10)) == {"accuracy loss"}


def test_the_verdict_says_whether_accuracy_was_measured_and_whether_anything_changed():
    """`health_report` with a model that changes 9 or 10 of 1,000 predictions."""
    unchecked = "not wrong classes; accuracy is not measured."
    labels, weights = start().labels, start().class_weights
    for images, hardly in ((9, True), (10, False)):
        predictions = np.where(np.arange(COUNT) < images, 1, labels)
        for test in (None, two_models(100, 60, 60)):
            found = health_report(start(), weights, predictions, records(), test)
            verdict = found["verdict"]
            assert verdict.startswith("Healthy: no alarms.") and found["alarms"] == []
            assert (unchecked in verdict) == (test is None)
            assert ("hardly changed: only 0.9%" in verdict) == hardly
        still = health_report(start(), weights, predictions, records(), trained=False)
        assert still["verdict"].endswith("Nothing was trained: this is the zero-shot model.")
        assert "too short" not in found["verdict"]
    short = health_report(start(), weights, labels, records()[:2])
    assert (
        "too short to judge batches and descriptions: 3 logged steps are needed, found 2 ("
        in short["verdict"]
    )
    fell = health_report(start(), weights, labels, records(), two_models(100, 11, 5))
    assert fell["verdict"].startswith("Check this model before you use it: 2 alarms.\nAlarms: acc")


def test_missing_descriptions():
    (alarm,) = final_alarms(start(0.8), start().class_weights, start().labels)
    assert alarm.name == "missing image descriptions" and alarm.value == 0.8
    assert "20%" in alarm.message and "captioning.describe" in alarm.advice


def test_the_entropy_of_batches_is_measured_in_batches():
    """A batch contains fewer classes than the data set, which must not look like a collapse."""
    classes, rng = 400, np.random.default_rng(1)
    many = Baseline([str(n) for n in range(classes)], np.eye(classes), np.arange(classes), 128, {})
    counts = np.bincount(rng.integers(0, classes, 128), minlength=classes) / 128
    p = counts[counts > 0]
    drawn = -(p * np.log(p)).sum() / math.log(classes)
    assert (
        drawn < thresholds.MIN_ENTROPY_RATIO
    )  # although the distribution over all images is uniform
    assert many.batch_entropy == pytest.approx(drawn, abs=0.01)
    assert window_alarms(many, records(batch_class_entropy=drawn)) == []


def test_a_loss_that_is_not_finite_names_the_steps():
    well = {"loss": 1.0, "gradient_norm": 2.0}
    train_loop.stop_unless_finite(well, 30, 20, 20)
    with pytest.raises(TrainingError, match=r"nan at step 30.*steps 21 to 30.*loss of step 20 was"):
        train_loop.stop_unless_finite({**well, "loss": float("nan")}, 30, 20, 20)
    with pytest.raises(TrainingError, match=r"steps 1 to 10 \(no finite.*No checkpoint was saved"):
        train_loop.stop_unless_finite({**well, "loss": float("inf")}, 10, 0, None)


NOT_COMPILED = "--config.train.microbatch_size=0"  # a number needs no compiled step


def fake_steps(monkeypatch, metrics: Callable[[int], dict[str, float]]) -> None:
    """Replace the train step by one that computes nothing and returns the given metrics."""

    def make_train_step(*parts: object) -> Callable:
        @jax.transfer_guard("allow")
        def run_step(state, *rest):
            state = dataclasses.replace(state, step=state.step + 1)
            found = metrics(int(state.step))
            return state, {name: jnp.float32(value) for name, value in found.items()}

        return run_step

    monkeypatch.setattr(train_loop, "make_train_step", make_train_step)


def test_a_gradient_that_is_not_finite_stops_before_its_parameters_are_saved(place, monkeypatch):
    """The loss of that step is still finite; only the next one would not be."""
    fake_steps(monkeypatch, lambda step: {"loss": 1, "gradient_norm": math.nan if step == 4 else 2})
    with pytest.raises(TrainingError, match=r"gradient norm is nan at step 4.*of step 2 is kept"):
        run("labeled", "--workdir=w", NOT_COMPILED)
    assert [p.name for p in (place / "w/checkpoints").iterdir()] == ["2"]


def test_a_run_watches_its_log_and_states_its_health(place, monkeypatch, capsys):
    log = records(agreement_with_frozen=0.3)[0]
    del log["step"]
    fake_steps(monkeypatch, lambda step: log)
    found = run("labeled", NOT_COMPILED)["health"]
    assert capsys.readouterr().err.count("warning: pseudo-label drift: ") == 1
    assert "pseudo-label drift" in [alarm["name"] for alarm in found["alarms"]]
    assert "hardly changed: only 0.0%" in found["verdict"]
    assert "accuracy is not measured" not in found["verdict"]
    metrics = found["metrics"]
    assert metrics["agreement_with_frozen"] == 1 and metrics["drift_largest"] < 1e-6
    assert metrics["weight_image"] == pytest.approx(log["weight_image"])


def health_of(*args: str) -> dict:
    return run("unlabeled", *args)["health"]


@pytest.mark.full
def test_labels_never_steer_health(place):
    """Only what says it measures depends on labels that are absent, true or shuffled."""
    paths = sorted(p for p in (place / "unlabeled").rglob("*.*") if p.suffix != ".txt")
    true = [CLASSES["cdb".index(p.name[0])] for p in paths]
    shuffled = np.random.default_rng(0).permutation(true)
    found = [health_of("--workdir=absent", "--config.dataset.labels=none")]
    for name, labels in (("true", true), ("shuffled", shuffled)):
        with (place / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [
                (p.relative_to(place / "unlabeled").as_posix(), c)
                for p, c in zip(paths, labels, strict=True)
            ]
            csv.writer(file).writerows([("image", "label"), *rows])
        found.append(health_of(f"--workdir={name}", f"--config.dataset.labels={place / name}.csv"))
    results = [json.loads((place / d / "results.json").read_text()) for d in ("true", "shuffled")]
    assert results[0]["zero_shot"] != results[1]["zero_shot"]  # the labels were read
    for health in found:
        del health["verdict"]
        measured = ("accuracy loss", "accuracy at chance")
        health["alarms"] = [a for a in health["alarms"] if a["name"] not in measured]
    assert found[0] == found[1] == found[2]


TRAINED = [
    pytest.param(method, marks=pytest.mark.full)
    for method in ("latteclip", "flyp", "flyp_oracle", "reclip")
]


@pytest.mark.parametrize("method", ["zero_shot", *TRAINED])
def test_every_method_has_its_health(place, method):
    found = run("labeled", f":method={method}", "--config.wise_ft=0.9")["health"]
    assert set(found) == {"verdict", "alarms", "metrics", "class_fractions"}
    metrics = found["metrics"]
    assert {"agreement_with_frozen", "class_entropy", "drift_mean", "separation"} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert ("weight_image" in metrics) == (method == "latteclip")
    if method == "zero_shot":
        assert "hardly changed" not in found["verdict"]
        assert metrics["agreement_with_frozen"] == 1 and metrics["drift_largest"] < 1e-6
    log = (place / f"runs/labeled-{method}-s0/metrics.jsonl").read_text().splitlines()
    first = json.loads(log[0]) if log else {}
    assert ("separation" in first) == (method in ("latteclip", "reclip"))
    assert ("agreement_with_frozen" in first) == (method in ("latteclip", "flyp", "reclip"))


def test_the_step_counts_the_spread_of_predictions():
    from lattec_jax.training.step import prediction_metrics

    found = prediction_metrics(jnp.array([2, 2, 0, 2]), jnp.array([2, 1, 0, 1]), 4)
    assert found["agreement_with_frozen"] == 0.5
    assert found["batch_largest_fraction"] == 0.75 and found["batch_largest_class"] == 2
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert float(found["batch_class_entropy"]) == pytest.approx(expected, rel=1e-5)
