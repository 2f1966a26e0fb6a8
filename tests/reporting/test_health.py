"""Each alarm on arrays made for it; all of them silent on a run that is well."""

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

from lattec_jax import train_loop
from lattec_jax.reporting import health
from lattec_jax.reporting.health import (
    HealthMonitor,
    Reference,
    final_alarms,
    health_report,
    window_alarms,
)
from lattec_jax.runtime.errors import TrainingError
from tests.runs import CLASSES, run

NAMES = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
COUNT = 1000


def start(coverage: float = 1.0) -> Reference:
    """Ten classes at right angles with a hundred images each."""
    labels = np.repeat(np.arange(10), COUNT // 10).astype(np.int32)
    return Reference(NAMES, np.eye(10, 12, dtype=np.float32), labels, 128, {"image": coverage})


def records(**changed: float) -> list[dict[str, float]]:
    """Three lines of the log of a healthy run, with metrics of another."""
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


def names_of(alarms: list[health.Alarm]) -> set[str]:
    return {alarm.name for alarm in alarms}


def test_a_healthy_run_sets_off_nothing():
    found = health_report(start(), start().vectors, start().labels, records())
    assert found["alarms"] == [] and found["verdict"].startswith("Healthy: no alarm")
    metrics = found["metrics"]
    assert metrics["agreement_with_frozen"] == 1 and metrics["class_entropy"] == pytest.approx(1)
    assert metrics["drift_largest"] == pytest.approx(0) and metrics["separation"] == 1
    assert metrics["weight_image"] == pytest.approx(0.4) and metrics["coverage_image"] == 1


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("collapse while training", {"batch_class_entropy": 0.5}),
        ("runaway pseudo-labels", {"agreement_with_frozen": 0.3}),
        ("merged prototypes", {"separation": 0.1}),
        ("image descriptions carry nothing", {"weight_image": 0.02}),
    ],
)
def test_what_the_log_sets_off(name, changed, capsys):
    (alarm,) = window_alarms(start(), records(**changed))
    assert alarm.name == name and alarm.value < alarm.threshold and alarm.do and alarm.message
    if name == "collapse while training":
        assert alarm.classes == ("six",)
    # During training it is printed once, as soon as there are enough lines, and is in the results.
    watch = HealthMonitor(start())
    for line in [*records(**changed), *records(**changed)]:
        watch.see(int(line["step"]), {n: np.asarray(v) for n, v in line.items()})  # as in training
    assert capsys.readouterr().err.count(f"warning: {name}: ") == 1
    found = health_report(start(), start().vectors, start().labels, records(**changed))
    assert [a["name"] for a in found["alarms"]] == [name]
    assert found["verdict"].startswith("Look before you use this model: One alarm was set off")
    assert name in found["verdict"]
    # A run that continues does not say again what was said before it stopped.
    continued = HealthMonitor(start(), records(**changed))
    continued.see(40, records(**changed)[0])
    assert name not in capsys.readouterr().err


def test_merged_classes_do_not_accuse_the_descriptions():
    """The weights of texts fall with the distance of the classes."""
    found = names_of(window_alarms(start(), records(separation=0.05, weight_image=0.02)))
    assert found == {"merged prototypes"}


def test_one_line_or_a_line_of_an_evaluation_sets_off_nothing(capsys):
    watch, bad = HealthMonitor(start()), records(batch_class_entropy=0.1)[0]
    watch.see(10, bad)
    watch.see(10, {"class_entropy": 0.2, "test_top1": 0.1})
    watch.see(20, bad)
    assert capsys.readouterr().err == "" and watch.last_finite == 20


def test_emptied_and_swallowing_classes():
    labels = start().labels
    predictions = np.where(np.isin(labels, (2, 3, 4)), 7, labels)
    emptied, swallowing = final_alarms(start(), start().vectors, predictions)
    assert (emptied.name, emptied.classes) == ("emptied classes", ("two", "three", "four"))
    assert emptied.value == pytest.approx(0.3)
    assert (swallowing.name, swallowing.classes) == ("swallowing classes", ("seven",))
    assert swallowing.value == pytest.approx(4)
    # A class that zero-shot gave fewer than ten images may empty.
    counted = np.where(np.arange(COUNT) < 93, 1, labels).astype(np.int32)
    few = dataclasses.replace(start(), labels=counted)
    predictions = np.where(few.labels == 0, 1, few.labels)
    assert names_of(final_alarms(few, few.vectors, predictions)) == set()


def test_one_emptied_class_of_many_is_no_collapse():
    labels = np.repeat(np.arange(40), 25).astype(np.int32)
    many = Reference([f"c{n}" for n in range(40)], np.eye(40), labels, 128, {})
    assert final_alarms(many, many.vectors, np.where(labels == 3, 4, labels)) == []


def test_runaway_labels_at_the_end_name_the_classes_that_moved_most():
    labels = start().labels
    predictions = (labels + (np.arange(COUNT) % 10 < 6)) % 10  # every class hands on 60%
    (alarm,) = final_alarms(start(), start().vectors, predictions)
    assert alarm.name == "runaway pseudo-labels" and alarm.value == pytest.approx(0.4)
    assert alarm.classes == ()  # all shares are as they were
    predictions = np.where(labels < 6, labels // 3 * 3, labels)
    predictions[:100] = 9
    predictions = np.where((labels == 6) | (labels == 7), 8, predictions)
    alarms = {a.name: a for a in final_alarms(start(), start().vectors, predictions)}
    assert alarms["runaway pseudo-labels"].value == pytest.approx(0.3)
    assert set(alarms["runaway pseudo-labels"].classes) <= set(NAMES)


def test_merged_prototypes_name_their_pairs():
    vectors = np.eye(10, 12, dtype=np.float32)
    vectors[:, 11] = 4  # all near one direction, and two nearer
    vectors[5] = vectors[4] + 0.1 * vectors[5]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (alarm,) = final_alarms(start(), vectors, start().labels)
    assert alarm.name == "merged prototypes" and "four and five" in alarm.classes
    similarity, other = health.nearest(vectors)
    cosines = vectors @ vectors.T
    expected = [max(cosines[c][d] for d in range(10) if d != c) for c in range(10)]
    np.testing.assert_allclose(similarity, expected, rtol=1e-6)
    assert other[4] == 5 and other[5] == 4
    assert alarm.value == pytest.approx(np.mean(1 - np.array(expected)), rel=1e-4)


def test_descriptions_that_are_missing():
    (alarm,) = final_alarms(start(0.8), start().vectors, start().labels)
    assert alarm.name == "image descriptions are missing" and alarm.value == 0.8
    assert "20%" in alarm.message and "captioning.describe" in alarm.do


def test_the_entropy_of_batches_is_measured_in_batches():
    """A batch holds fewer classes than the set, which must not look like a collapse."""
    classes, rng = 400, np.random.default_rng(1)
    many = Reference([str(n) for n in range(classes)], np.eye(classes), np.arange(classes), 128, {})
    counts = np.bincount(rng.integers(0, classes, 128), minlength=classes) / 128
    p = counts[counts > 0]
    drawn = -(p * np.log(p)).sum() / math.log(classes)
    assert drawn < health.ENTROPY  # of even shares, which are 1 over the whole set
    assert many.batch_entropy == pytest.approx(drawn, abs=0.01)
    assert window_alarms(many, records(batch_class_entropy=drawn)) == []


def test_a_loss_that_is_not_finite_names_the_steps():
    well = {"loss": 1.0, "gradient_norm": 2.0}
    train_loop.stop_unless_finite(well, 30, 20, 20)
    with pytest.raises(TrainingError, match=r"nan at step 30.*steps 21 to 30.*loss of step 20 was"):
        train_loop.stop_unless_finite({**well, "loss": float("nan")}, 30, 20, 20)
    with pytest.raises(TrainingError, match=r"steps 1 to 10 \(no finite.*No checkpoint was saved"):
        train_loop.stop_unless_finite({**well, "loss": float("inf")}, 10, 0, None)


def make_up(monkeypatch, metrics: Callable[[int], dict[str, float]]) -> None:
    """Let the train loop take steps that compute nothing and have the metrics given for them."""

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
    make_up(monkeypatch, lambda step: {"loss": 1, "gradient_norm": math.nan if step == 4 else 2})
    with pytest.raises(TrainingError, match=r"gradient norm is nan at step 4.*of step 2 is kept"):
        run("labeled", "--workdir=w")
    assert [p.name for p in (place / "w/checkpoints").iterdir()] == ["2"]


def test_a_run_watches_its_log_and_states_its_health(place, monkeypatch, capsys):
    log = records(agreement_with_frozen=0.3)[0]
    del log["step"]
    make_up(monkeypatch, lambda step: log)
    found = run("labeled")["health"]
    assert capsys.readouterr().err.count("warning: runaway pseudo-labels: ") == 1
    assert [alarm["name"] for alarm in found["alarms"]] == ["runaway pseudo-labels"]
    metrics = found["metrics"]
    assert metrics["agreement_with_frozen"] == 1 and metrics["drift_largest"] < 1e-6
    assert metrics["weight_image"] == pytest.approx(log["weight_image"])


def health_of(*args: str) -> dict:
    return run("unlabeled", *args)["health"]


@pytest.mark.full
def test_labels_never_steer_health(place):
    """The same with the labels of training images absent, true and shuffled."""
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
