"""The sections of the report: functions from a run to HTML, which is empty without content.

All text from files is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lattec_jax.reporting.charts import UNKNOWN, format_number, heat_map, is_finite, line_chart
from lattec_jax.reporting.markup import escape, table

MAX_MATRIX_CLASSES = 100  # with more classes, only the largest entries of a matrix are listed
MAX_PAIRS = 20
# Title, note, and metrics of the log with their labels.
CHARTS = (
    ("Loss", "", {"loss": "loss"}),
    (
        "Agreement with the frozen model",
        "Fraction of a batch with the same pseudo-label by the current and the frozen model.",
        {"agreement_with_frozen": "agreement"},
    ),
    (
        "Distribution of the predictions",
        "Entropy over the classes in a batch: 1 is uniform, 0 is a single class.",
        {"batch_class_entropy": "entropy", "batch_largest_fraction": "fraction of largest class"},
    ),
    ("Gradient norm", "", {"gradient_norm": "gradient norm"}),
    ("Update norm", "", {"update_norm": "update norm"}),
    ("Parameter norm", "", {"parameter_norm": "parameter norm"}),
    ("Throughput", "", {"images_per_second": "images/s"}),
    ("Logit scale", "The inverse temperature.", {"logit_scale": "logit scale"}),
    ("Learning rate", "", {"learning_rate": "learning rate"}),
    (
        "Drift of the prototypes",
        "1 − cosine between the current and the first vector of a class.",
        {"drift_mean": "mean", "drift_largest": "maximum"},
    ),
    (
        "Separation of the prototypes",
        "Maximum cosine between two classes; separation: mean distance to the nearest class, "
        "relative to the start.",
        {"nearest_similarity": "maximum cosine", "separation": "separation"},
    ),
    ("Accuracy", "On the test images.", {"test_top1": "top-1", "test_top5": "top-5"}),
)
# Labels of the health metrics; after a prefix comes a kind of text.
METRIC_LABELS = {
    "agreement_with_frozen": "agreement with the frozen model",
    "class_entropy": "entropy of the predictions, adapted (1 is uniform)",
    "class_entropy_zero_shot": "entropy of the predictions, zero-shot (1 is uniform)",
    "drift_mean": "drift of the class vectors (1 − cosine to the start), mean",
    "drift_largest": "drift of the class vectors (1 − cosine to the start), maximum",
    "nearest_similarity": "maximum cosine between two classes",
    "separation": "distance between classes, relative to the start",
    "gradient_norm": "gradient norm",
    "logit_scale": "logit scale",
}
METRIC_PREFIXES = {
    "coverage_": "fraction of images with a description",
    "weight_": "mean mixer weight of the texts",
}
RESULTS_VALUES = (
    "method", "preset", "dataset", "protocol", "model", "weights", "weights_sha256",
    "seed", "steps", "learning_rate", "alpha", "momentum", "wise_ft", "template",
)  # fmt: skip
CONFIG_VALUES = (
    ("train.batch_size", "batch size"),
    ("train.schedule", "schedule"),
    ("train.optimizer", "optimizer"),
    ("train.weight_decay", "weight decay"),
)
LATTECLIP_VALUES = (("method.texts", "texts"), ("method.labels", "pseudo-labels"))
DESCRIPTION_VALUES = (("descriptions.engine", "captioning engine"),)


class RunFiles(NamedTuple):
    """The files of a work directory."""

    config: dict[str, Any]  # config.json
    results: dict[str, Any]  # results.json
    log: list[dict[str, Any]]  # metrics.jsonl
    data: dict[str, Any] | None  # report_data.json, if it exists


def health(run: RunFiles) -> str:
    """Return the verdict, the alarms, and the health metrics."""
    found = run.results["health"]
    kind = "verdict warning" if found["alarms"] else "verdict"
    parts = [
        f'<div class="{kind}">'
        + "".join(f"<p>{escape(line)}</p>" for line in found["verdict"].split("\n"))
        + "</div>"
    ]
    for alarm in found["alarms"]:
        affected = ", ".join(alarm["classes"])
        parts.append(
            f'<div class="alarm"><h3>Alarm: {escape(alarm["name"])}</h3>'
            f"<p>{escape(alarm['message'])}</p>"
            + (f"<p>Classes: {escape(affected)}</p>" if affected else "")
            + f"<p><strong>What to do:</strong> {escape(alarm['advice'])}</p>"
            f'<p class="soft">{escape(alarm["metric"])} = {format_number(alarm["value"])}, '
            f"threshold {format_number(alarm['threshold'])}</p></div>"
        )
    rows = [(_metric_label(k), format_number(v)) for k, v in found["metrics"].items()]
    parts.append(table("Metrics on the training images, without labels", ("metric", "value"), rows))
    return "\n".join(parts)


def _metric_label(name: str) -> str:
    for prefix, label in METRIC_PREFIXES.items():
        if name.startswith(prefix):
            return f"{label}: {name.removeprefix(prefix)}"
    return METRIC_LABELS.get(name, name)


def accuracy(run: RunFiles) -> str:
    """Return top-1 and top-5 accuracy, or a note that there are no labels."""
    results = run.results
    before, after = results["zero_shot"], results["adapted"]
    if before is None:
        return (
            "<p>There are no labeled test images, so the accuracy is not known. The table of "
            "classes gives the fraction of predictions instead.</p>"
        )
    rows = [
        (key.replace("top", "top-"), *_change(before[key], after[key]))
        for key in ("top1", "top5")
        if None not in (before[key], after[key])
    ]
    return table(
        f"Accuracy on {results['n_test']:,} test images",
        ("accuracy (%)", "zero-shot", "adapted", "change (percentage points)"),
        rows,
    )


def classes(run: RunFiles) -> str:
    """Return the accuracy per class, or the fraction of predictions per class without labels."""
    results = run.results
    names, fractions = results["class_names"], results["health"]["class_fractions"]
    train = list(zip(fractions["zero_shot"], fractions["adapted"], strict=True))
    if results["zero_shot"] is None:
        rows = [(name, *_change(*pair)) for name, pair in zip(names, train, strict=True)]
        header = ("class", "zero-shot", "adapted", "change (percentage points)")
        return table("Fraction of the training images per predicted class (%)", header, rows)
    per_class = results["per_class"]
    rows = []
    for name, before, after, (first, second) in zip(
        names, per_class["zero_shot"], per_class["adapted"], train, strict=True
    ):
        cells = ("no images", "", "") if before is None or after is None else _change(before, after)
        rows.append((name, *cells, f"{first:.1%}", f"{second:.1%}"))
    header = (
        "class", "zero-shot", "adapted", "change (percentage points)",
        "predictions, zero-shot", "predictions, adapted",
    )  # fmt: skip
    caption = "Accuracy per class (%), and fraction of training images predicted as it (%)"
    return table(caption, header, rows)


def _change(before: float, after: float) -> tuple[str, str, str]:
    """Return both values in percent, and their difference with an arrow and a sign."""
    change = 100 * (after - before)
    arrow = "▲" if change >= 0.05 else "▼" if change <= -0.05 else "="
    return f"{before:.1%}", f"{after:.1%}", f"{arrow} {change:+z.1f}"


def confusion(run: RunFiles) -> str:
    """Return the confusion matrices, for few classes, and the most confused pairs of classes."""
    if run.data is None or run.data["confusion"] is None:
        return ""
    names, parts = run.results["class_names"], []
    counts = {
        when: {(true, predicted): n for true, predicted, n in run.data["confusion"][when]}
        for when in ("before", "after")
    }
    if len(names) <= MAX_MATRIX_CLASSES:
        maps = [
            heat_map(title, _row_fractions(counts[when]), names, ("true class", "predicted class"))
            for when, title in (("before", "Zero-shot"), ("after", "Adapted"))
        ]
        parts.append(f'<div class="maps">{"".join(maps)}</div>')
        parts.append('<p class="soft">Number of images; shade: fraction of the row.</p>')
    wrong = {pair for when in counts.values() for pair in when if pair[0] != pair[1]}

    def images(pair: tuple[int, int]) -> tuple[int, int]:
        return counts["before"].get(pair, 0), counts["after"].get(pair, 0)

    rows = []
    for pair in sorted(wrong, key=lambda pair: (-max(images(pair)), pair))[:MAX_PAIRS]:
        (true, predicted), (before, after) = pair, images(pair)
        change = f"{after - before:+d}"
        rows.append((names[true], names[predicted], str(before), str(after), change))
    if rows:
        header = ("true class", "predicted class", "zero-shot", "adapted", "change")
        parts.append(table("The most confused pairs (number of test images)", header, rows, (1,)))
    return "\n".join(parts)


def _row_fractions(
    counts: Mapping[tuple[int, int], int],
) -> dict[tuple[int, int], tuple[float, str]]:
    """Return cells of a heat map: counts, with their fraction of the row as opacity."""
    totals: dict[int, int] = {}
    for (true, _), count in counts.items():
        totals[true] = totals.get(true, 0) + count
    return {pair: (n / totals[pair[0]], str(n)) for pair, n in counts.items()}


def training_curves(run: RunFiles) -> str:
    """Return the metrics of the log as line charts."""
    kinds = {n: n.removeprefix("weight_") for line in run.log for n in line if n[:7] == "weight_"}
    about = "Mean mixer weight of each kind of text (Eq. 1): how well it distinguishes the classes."
    charts = []
    for title, note, names in (*CHARTS, ("Mixer weights", about, kinds)):
        lines = {
            label: [(line["step"], line[name]) for line in run.log if is_finite(line.get(name))]
            for name, label in names.items()
        }
        if any(lines.values()):
            charts.append(line_chart(title, lines, note))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def prototypes(run: RunFiles) -> str:
    """Return the cosines between the class weights, for few classes, and the nearest classes."""
    if run.data is None:
        return ""
    names, found = run.results["class_names"], run.data["prototypes"]
    drift = run.results["label_free"]["prototype_drift"]
    rows = [
        (names[c], names[nearest], _cosine(before), _cosine(after), _cosine(drift[c]))
        for c, nearest, before, after in found["nearest"]
    ]
    rows.sort(key=lambda row: 0 if row[3] == UNKNOWN else -float(row[3]))
    header = ("class", "nearest class", "cosine before", "cosine after", "drift (1 − cosine)")
    caption = "Nearest other class of each class"
    if len(rows) > MAX_MATRIX_CLASSES:
        rows, caption = rows[:MAX_PAIRS], f"{caption}: the {MAX_PAIRS} nearest pairs"
    parts = [table(caption, header, rows, (1,))]
    if found["cosines"]:
        cells = {
            (i, j): (max(value, 0.0), f"{value:z.1f}")
            for i, row in enumerate(found["cosines"])
            for j, value in enumerate(row)
            if is_finite(value)
        }
        title = "Cosines between the adapted class weights"
        drawn = heat_map(title, cells, names, ("class", "class"))
        parts.insert(0, f'<div class="maps">{drawn}</div>')
    return "\n".join(parts)


def _cosine(value: float | None) -> str:
    return f"{value:z.3f}" if is_finite(value) else UNKNOWN


def _card(entry: Mapping[str, Any], alt: str, lines: Sequence[str]) -> str:
    """Return a list item: an image, and lines of HTML beside it."""
    body = "".join(f"<p>{line}</p>" for line in lines)
    return (
        f'<li><img src="{escape(entry["thumbnail"])}" '
        f'alt="{escape(alt)}" width="96" height="96">'
        f"<div>{body}<small>{escape(entry['image'])}</small></div></li>"
    )


def examples(run: RunFiles) -> str:
    """Return training images with their texts, mixer weights, and pseudo-labels."""
    if run.data is None or not run.data["examples"]:
        return ""
    cards = []
    for entry in run.data["examples"]:
        lines = [
            f"zero-shot: <strong>{escape(entry['zero_shot'])}</strong>",
            f"adapted: <strong>{escape(entry['current'])}</strong>",
        ]
        for text in entry["texts"]:
            weight = f" (weight {text['weight']:.3f})" if is_finite(text["weight"]) else ""
            content = escape(text["text"]) if text["text"] else "<em>none</em>"
            lines.append(f"{escape(text['kind'])}{weight}: {content}")
        alt = f"Training image; zero-shot: {entry['zero_shot']}, adapted: {entry['current']}"
        cards.append(_card(entry, alt, lines))
    note = "A sample of the training images. Mixer weights are those of the adapted model."
    return f'<p class="soft">{note}</p><ul class="examples">{"".join(cards)}</ul>'


def changed_images(run: RunFiles) -> str:
    """Return evaluated images whose predicted class changed."""
    if run.data is None or not run.data["changed"]["shown"]:
        return ""
    found, cards = run.data["changed"], []
    for entry in found["shown"]:
        before, after, label = (entry[key] for key in ("before", "after", "label"))
        lines = [f"{escape(before)} → <strong>{escape(after)}</strong>"]
        if label is not None:
            change = "corrected" if after == label else "now wrong" if before == label else "wrong"
            lines.append(f"true class: {escape(label)} ({change})")
        cards.append(_card(entry, f"Image with prediction changed from {before} to {after}", lines))
    note = f"{found['count']:,} of {found['of']:,} evaluated images have another predicted class"
    if found["right"] is not None:
        note += f": {found['right']:,} were corrected, {found['wrong']:,} are now wrong"
    note += f". {len(cards)} of them are shown."
    return f'<p>{note}</p><ul class="examples few">{"".join(cards)}</ul>'


def settings(run: RunFiles) -> str:
    """Return what identifies the run, and the main values of its configuration."""
    results = run.results
    values = {key.replace("_", " "): results.get(key) for key in RESULTS_VALUES}
    configured = CONFIG_VALUES
    if results["method"] == "latteclip":
        configured += LATTECLIP_VALUES
    if results.get("descriptions"):
        configured += DESCRIPTION_VALUES
    for dotted, label in configured:
        value: Any = run.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        values[label] = value
    for kind, counts in (results.get("descriptions") or {}).items():
        values[f"{kind} descriptions"] = f"{counts['found']:,}, {counts['missing']:,} missing"
    values["training images"], values["test images"] = results["n_train"], results["n_test"]
    values["unreadable images"] = len(results.get("unreadable", ()))
    values["training time (s)"] = results.get("train_seconds")
    values["images/s"] = results.get("images_per_second")
    values["device"] = results.get("device")
    body = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(_format(value))}</dd>"
        for key, value in values.items()
        if value is not None
    )
    return f'<dl class="run">{body}</dl>'


def _format(value: Any) -> str:
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    return value if isinstance(value, str) else json.dumps(value)
