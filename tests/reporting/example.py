"""Made-up files of a run, for reports with any number of classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lattec_jax.reporting.health import health_report
from lattec_jax.reporting.health_metrics import Baseline
from lattec_jax.reporting.report_data import thumbnail
from lattec_jax.reporting.sections import RunFiles

NASTY = "</script><script>window.hit=1</script><img src=x onerror=hit=1> \"'&"


def example(classes: int = 10, labeled: bool = True, images: int = 1000) -> RunFiles:
    """A run whose texts contain everything that could break a page."""
    rng = np.random.default_rng(0)
    names = [f"class {n}" for n in range(classes - 1)] + [NASTY]
    vectors = rng.normal(size=(2, classes, 16))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    truth, before, after = rng.integers(0, classes, (3, images))
    log = [
        {"step": step, "loss": 9 / step, "agreement_with_frozen": 0.3, "batch_class_entropy": 0.9,
         "batch_largest_fraction": 0.2, "batch_largest_class": 1.0, "gradient_norm": 1e-5 * step,
         "weight_image": 0.1, "weight_class": 0.2, "logit_scale": None if step == 20 else 14.0}
        for step in range(10, 200, 10)
    ]  # fmt: skip
    start = Baseline(names, vectors[0], before, 64, {"image": 0.8})
    pixels = thumbnail(rng.integers(0, 256, (224, 224, 3)).astype(np.uint8))
    accuracy = {"top1": 0.5, "top5": 0.9}
    results = {
        **dict.fromkeys(("preset", "protocol", "model", "weights", "weights_sha256", "device")),
        **dict.fromkeys(("alpha", "momentum", "wise_ft", "train_seconds", "images_per_second")),
        "method": "latteclip", "dataset": NASTY, "seed": 0, "steps": 190, "learning_rate": 1e-7,
        "template": "a {}", "version": "0", "n_train": images, "n_test": images, "unreadable": [],
        "descriptions": {"image": {"found": 800, "missing": 200}}, "class_names": names,
        "zero_shot": accuracy if labeled else None, "adapted": accuracy if labeled else None,
        "per_class": {"zero_shot": [None, *([0.5] * (classes - 1))], "adapted": [0.6] * classes},
        "label_free": {"prototype_drift": [0.1] * classes},
        "health": health_report(start, vectors[1], after, log),
    }  # fmt: skip
    text = {"kind": "image", "text": NASTY, "weight": 0.125}
    shown = {"image": NASTY, "thumbnail": pixels, "before": names[0], "after": names[-1]}
    card = {"image": NASTY, "thumbnail": pixels, "zero_shot": names[-1], "current": names[0]}
    few = classes <= 50
    data = {
        "prototypes": {
            "nearest": [[c, (c + 1) % classes, 0.5, 0.4] for c in range(classes)],
            "cosines": np.round(vectors[1] @ vectors[1].T, 3).tolist() if few else None,
        },
        "confusion": {
            when: [[int(t), int(p), 1] for t, p in {*zip(truth, found, strict=True)}]
            for when, found in (("before", before), ("after", after))
        },
        "changed": {"count": 5, "of": images, "right": 3, "wrong": 1,
                    "shown": [{**shown, "label": names[1]}] * 36},
        "examples": [{**card, "texts": [text, {**text, "text": None, "weight": None}]}] * 18,
    }  # fmt: skip
    if not labeled:
        data["confusion"] = None
        data["changed"] |= {"right": None, "wrong": None, "shown": [{**shown, "label": None}] * 36}
    return RunFiles({"train": {"batch_size": 64}}, results, log, data)


LONG, RTL = "W" * 5000, "\u202eעברית العربية"
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- --!> <![CDATA[ ]]>",
    "</style></title><svg onload=alert(1)>",
    "$title ${content} $$",
    "line\u2028separator\u2029",
    "nul\0 esc\x1b[2J del\x7f",
    "half \ud83d",
    RTL,
    LONG,
    "\"' onmouseover=alert(1) x='",
)


def hostile() -> RunFiles:
    """A run whose names, texts and file names break pages, terminals and layouts; with NaN."""
    run = example(len(HOSTILE) + 1)
    results, data = json.loads(json.dumps([run.results, run.data]))
    results["class_names"] = [*HOSTILE, NASTY]
    results["dataset"] = results["weights"] = results["device"] = " ".join(HOSTILE)
    results["descriptions"] = {text: {"found": 1, "missing": 0} for text in HOSTILE}
    results["health"]["verdict"] = "\n".join(HOSTILE)
    alarm = dict.fromkeys(("name", "metric", "message", "advice"), " ".join(HOSTILE))
    alarm |= {"value": float("nan"), "threshold": float("inf"), "classes": list(HOSTILE)}
    results["health"]["alarms"] = [alarm]
    results["health"]["metrics"] = {**dict.fromkeys(HOSTILE, float("nan")), "more": 1.0}
    results["label_free"]["prototype_drift"][0] = float("nan")
    data["prototypes"]["cosines"][0][1] = float("nan")
    data["prototypes"]["nearest"][0][3] = float("inf")
    for number, entry in enumerate((*data["changed"]["shown"], *data["examples"])):
        text = HOSTILE[number % len(HOSTILE)]
        entry |= {key: text for key in entry.keys() - {"thumbnail", "texts"}}
        if "texts" in entry:
            entry["texts"] = [{"kind": text, "text": text, "weight": float("nan")}]
    log = [{**line, f"weight_{LONG}": 0.5, "loss": float("nan")} for line in run.log]
    log[0] |= {f"weight_{text}": 1e300 for text in HOSTILE}
    log[3]["gradient_norm"] = float("inf")
    return RunFiles(run.config, results, log, data)


def write_files(run: RunFiles, workdir: Path) -> None:
    """Write the files of a finished run."""
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(run.config))
    (workdir / "results.json").write_text(json.dumps(run.results))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in run.log))
    if run.data is not None:
        (workdir / "report_data.json").write_text(json.dumps(run.data))
