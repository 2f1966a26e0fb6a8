"""The sections of the page, each a function of the run to HTML; empty where there is nothing.

Everything that comes from a file is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lattec_jax.reporting.charts import UNKNOWN, curves, heat_map, is_finite, number
from lattec_jax.reporting.markup import escape

MAP_CLASSES = 100  # up to here matrices are drawn, beyond them the largest entries are listed
MOST_PAIRS = 20
# Title, a sentence, and the metrics of the log by their labels.
CURVES = (
    ("Loss", "", {"loss": "loss"}),
    (
        "Agreement with the frozen model",
        "Share of a batch whose current pseudo-label is that of the frozen model.",
        {"agreement_with_frozen": "agreement"},
    ),
    (
        "Spread of the predictions",
        "Entropy of a batch's shares per class: 1 is even, 0 is one class.",
        {"batch_class_entropy": "entropy", "batch_largest_fraction": "largest share"},
    ),
    ("Gradient norm", "", {"gradient_norm": "norm"}),
    ("Logit scale", "The inverse temperature.", {"logit_scale": "scale"}),
    ("Learning rate", "", {"learning_rate": "rate"}),
    (
        "Drift of the prototypes",
        "1 − cosine of a class's vector to its start.",
        {"drift_mean": "mean", "drift_largest": "largest"},
    ),
    (
        "Nearness of the prototypes",
        "Largest cosine between two classes; separation: mean distance to the nearest other class "
        "against the start.",
        {"nearest_similarity": "largest cosine", "separation": "separation"},
    ),
    ("Accuracy", "On the test images, while training.", {"test_top1": "top1", "test_top5": "top5"}),
)
RUN_VALUES = (
    ("config.train.batch_size", "batch size"),
    ("config.train.schedule", "schedule"),
    ("config.train.optimizer", "optimizer"),
    ("config.train.weight_decay", "weight decay"),
    ("config.method.texts", "texts"),
    ("config.method.labels", "pseudo-labels"),
    ("config.descriptions.engine", "engine of the descriptions"),
)


class Run(NamedTuple):
    """What the files of a work directory say."""

    config: dict[str, Any]  # config.json
    results: dict[str, Any]  # results.json
    log: list[dict[str, Any]]  # metrics.jsonl
    data: dict[str, Any] | None  # report_data.json; None: not there


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], words: frozenset[int]
) -> str:
    """A table that scrolls by itself where the screen is narrow. Cells are escaped here.

    Args:
        caption: what it shows.
        head: of the columns; the first column heads the rows.
        rows: cells.
        words: columns, beside the first, that hold words.
    """
    kinds = [' class="word"' if index in words else "" for index in range(len(head))]
    pairs = list(zip(head, kinds, strict=True))
    heads = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in pairs)
    body = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row[0])}</th>']
        for cell, kind in zip(row[1:], kinds[1:], strict=True):
            cells.append(f"<td{kind}>{escape(cell)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" '
        f'tabindex="0"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def verdict(run: Run) -> str:
    """The verdict, every alarm, and the metrics behind them."""
    health = run.results["health"]
    kind = "verdict look" if health["alarms"] else "verdict"
    parts = [
        f'<div class="{kind}">'
        + "".join(f"<p>{escape(line)}</p>" for line in health["verdict"].split("\n"))
        + "</div>"
    ]
    for alarm in health["alarms"]:
        named = ", ".join(alarm["classes"])
        parts.append(
            f'<div class="alarm"><h3>Alarm: {escape(alarm["name"])}</h3>'
            f"<p>{escape(alarm['message'])}</p>"
            + (f"<p>Classes: {escape(named)}</p>" if named else "")
            + f"<p><strong>What to do:</strong> {escape(alarm['do'])}</p>"
            f'<p class="soft">{escape(alarm["metric"])} = {number(alarm["value"])}, threshold '
            f"{number(alarm['threshold'])}</p></div>"
        )
    rows = [(name, number(value)) for name, value in health["metrics"].items()]
    parts.append(
        table(
            "Figures on the training images; no label is read for them",
            ("metric", "value"),
            [(name.replace("_", " "), value) for name, value in rows],
            frozenset(),
        )
    )
    return "\n".join(parts)


def before_and_after(run: Run) -> str:
    """Top-1 and top-5; without labels, what is known instead."""
    results = run.results
    before, after = results["zero_shot"], results["adapted"]
    if before is None:
        return (
            "<p>There are no labels of test images, so accuracies are not known. The classes below "
            "have shares of the predictions instead.</p>"
        )
    rows = [
        (key.replace("top", "top-"), *_change(before[key], after[key]))
        for key in ("top1", "top5")
        if None not in (before[key], after[key])
    ]
    return table(
        f"Accuracy on {results['n_test']:,} test images",
        ("accuracy", "zero-shot", "adapted", "change in points"),
        rows,
        frozenset(),
    )


def classes(run: Run) -> str:
    """Accuracy per class, or the share of images that each class is predicted for."""
    results = run.results
    names, fractions = results["class_names"], results["health"]["class_fractions"]
    train = list(zip(fractions["zero_shot"], fractions["adapted"], strict=True))
    if results["zero_shot"] is None:
        rows = [(name, *_change(*pair)) for name, pair in zip(names, train, strict=True)]
        head = ("class", "zero-shot", "adapted", "change in points")
        return table("Share of the training images per predicted class", head, rows, frozenset())
    per = results["per_class"]
    found = zip(names, per["zero_shot"], per["adapted"], train, strict=True)
    rows = []
    for name, before, after, (first, second) in found:
        known = before is not None and after is not None
        cells = _change(before, after) if known else ("no images", "", "")
        rows.append((name, *cells, f"{first:.1%}", f"{second:.1%}"))
    head = ("class", "zero-shot", "adapted", "change in points", "share before", "share after")
    caption = "Accuracy of each class, and its share of the predictions for the training images"
    return table(caption, head, rows, frozenset())


def _change(before: float, after: float) -> tuple[str, str, str]:
    """Both in per cent, and an arrow and a sign for the change."""
    change = 100 * (after - before)
    arrow = "▲" if change >= 0.05 else "▼" if change <= -0.05 else "="
    return f"{before:.1%}", f"{after:.1%}", f"{arrow} {change:+.1f}"


def confusion(run: Run) -> str:
    """Which classes are taken for which, before and after; of many classes the largest entries."""
    if run.data is None or run.data["confusion"] is None:
        return ""
    names, parts = run.results["class_names"], []
    counts = {
        when: {(true, found): count for true, found, count in run.data["confusion"][when]}
        for when in ("before", "after")
    }
    if len(names) <= MAP_CLASSES:
        maps = [
            heat_map(title, _of_rows(counts[when]), names, ("true class", "predicted class"))
            for when, title in (("before", "Zero-shot"), ("after", "Adapted"))
        ]
        parts.append(f'<div class="maps">{"".join(maps)}</div>')
        parts.append('<p class="soft">Cells: images; the darkness is the share of the row.</p>')
    wrong = {pair for when in counts.values() for pair in when if pair[0] != pair[1]}

    def images(pair: tuple[int, int]) -> tuple[int, int]:
        return counts["before"].get(pair, 0), counts["after"].get(pair, 0)

    largest = sorted(wrong, key=lambda pair: (-max(images(pair)), pair))[:MOST_PAIRS]
    rows = [
        (names[true], names[found], f"{first}", f"{second}", f"{second - first:+d}")
        for true, found in largest
        for first, second in [images((true, found))]
    ]
    if rows:
        head = ("true class", "taken for", "before", "after", "change")
        parts.append(table("The most confused pairs, in test images", head, rows, frozenset({1})))
    return "\n".join(parts)


def _of_rows(
    counts: Mapping[tuple[int, int], int],
) -> dict[tuple[int, int], tuple[float, str]]:
    """Counts as shares of their rows, for a heat map."""
    totals: dict[int, int] = {}
    for (true, _), count in counts.items():
        totals[true] = totals.get(true, 0) + count
    return {pair: (n / totals[pair[0]], str(n)) for pair, n in counts.items()}


def training_curves(run: Run) -> str:
    """The log as curves."""
    texts = {n: n.removeprefix("weight_") for line in run.log for n in line if n[:7] == "weight_"}
    about = "Mean weight of each kind of text: how well it tells the classes apart, Eq. (1)."
    charts = []
    for title, note, names in (*CURVES, ("Weights of the texts", about, texts)):
        lines = {
            label: [(s["step"], s[name]) for s in run.log if is_finite(s.get(name))]
            for name, label in names.items()
        }
        if any(lines.values()):
            charts.append(curves(title, lines, note))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def prototypes(run: Run) -> str:
    """How near the classes' vectors are to one another."""
    if run.data is None:
        return ""
    names, found = run.results["class_names"], run.data["prototypes"]
    drift = run.results["label_free"]["prototype_drift"]
    rows = [
        (names[c], names[near], _three(before), _three(now), _three(drift[c]))
        for c, near, before, now in found["nearest"]
    ]
    rows.sort(key=lambda row: 0 if row[3] == UNKNOWN else -float(row[3]))
    head = ("class", "nearest class", "cosine at the start", "cosine now", "drift (1 − cosine)")
    caption = "The vector of each class and its nearest other one"
    if len(rows) > MAP_CLASSES:
        rows, caption = rows[:MOST_PAIRS], f"{caption}: the {MOST_PAIRS} nearest"
    parts = [table(caption, head, rows, frozenset({1}))]
    if found["cosines"]:
        cells = {
            (i, j): (max(value, 0.0), f"{value:.1f}")
            for i, row in enumerate(found["cosines"])
            for j, value in enumerate(row)
            if is_finite(value)
        }
        drawn = heat_map("Cosines between the classes now", cells, names, ("class", "class"))
        parts.insert(0, f'<div class="maps">{drawn}</div>')
    return "\n".join(parts)


def _three(value: float | None) -> str:
    """A cosine; of a value that is not known a dash."""
    return f"{value:.3f}" if is_finite(value) else UNKNOWN


def _card(entry: Mapping[str, Any], alt: str, lines: Sequence[str]) -> str:
    """An image with lines of HTML beside it."""
    body = "".join(f"<p>{line}</p>" for line in lines)
    return (
        f'<li><img src="{escape(entry["thumbnail"])}" '
        f'alt="{escape(alt)}" width="96" height="96">'
        f"<div>{body}<small>{escape(entry['image'])}</small></div></li>"
    )


def examples(run: Run) -> str:
    """Training images with their texts, the weights of these, and both pseudo-labels."""
    if run.data is None or not run.data["examples"]:
        return ""
    cards = []
    for entry in run.data["examples"]:
        lines = [
            f"zero-shot: <strong>{escape(entry['zero_shot'])}</strong>",
            f"now: <strong>{escape(entry['current'])}</strong>",
        ]
        for text in entry["texts"]:
            weight = f" (weight {text['weight']:.3f})" if is_finite(text["weight"]) else ""
            words = escape(text["text"]) if text["text"] else "<em>none</em>"
            lines.append(f"{escape(text['kind'])}{weight}: {words}")
        alt = f"Training image, {entry['zero_shot']} to zero-shot, {entry['current']} now"
        cards.append(_card(entry, alt, lines))
    note = "Drawn evenly from the training images. Weights are those of the adapted model."
    return f'<p class="soft">{note}</p><ul class="examples">{"".join(cards)}</ul>'


def changed(run: Run) -> str:
    """Evaluated images whose class is another one after training."""
    if run.data is None or not run.data["changed"]["shown"]:
        return ""
    found, cards = run.data["changed"], []
    for entry in found["shown"]:
        before, after, label = (entry[key] for key in ("before", "after", "label"))
        lines = [f"{escape(before)} → <strong>{escape(after)}</strong>"]
        if label is not None:
            said = "now right" if after == label else "was right" if before == label else "wrong"
            lines.append(f"true: {escape(label)} ({said})")
        cards.append(_card(entry, f"Image that went from {before} to {after}", lines))
    note = f"{found['count']:,} of {found['of']:,} evaluated images changed class"
    if found["right"] is not None:
        note += f": {found['right']:,} from wrong to right, {found['wrong']:,} from right to wrong"
    return f'<p>{note}. {len(cards)} of them:</p><ul class="examples few">{"".join(cards)}</ul>'


def what_was_run(run: Run) -> str:
    """The main values of the configuration, and all of results.json that identifies the run."""
    results, values = run.results, {}
    for key in ("method", "preset", "dataset", "protocol", "model", "weights", "weights_sha256"):
        values[key.replace("_", " ")] = results.get(key)
    counts = ("seed", "steps", "learning_rate", "alpha", "momentum", "wise_ft", "template")
    for key in counts:
        values[key.replace("_", " ")] = results.get(key)
    for dotted, label in RUN_VALUES:
        value: Any = run.config
        for part in dotted.split(".")[1:]:
            value = value.get(part) if isinstance(value, dict) else None
        values[label] = value
    for kind, counted in (results.get("descriptions") or {}).items():
        values[f"{kind} descriptions"] = f"{counted['found']:,}, {counted['missing']:,} missing"
    values["training images"], values["test images"] = results["n_train"], results["n_test"]
    values["unreadable images"] = len(results.get("unreadable", ()))
    values["seconds of training"] = results.get("train_seconds")
    values["images per second"] = results.get("images_per_second")
    values["device"] = results.get("device")
    shown = [(k, _plain(v)) for k, v in values.items() if v is not None]
    body = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in shown)
    return f'<dl class="run">{body}</dl>'


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    return value if isinstance(value, str) else json.dumps(value)
