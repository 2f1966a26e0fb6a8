"""The figure of the README, drawn from made-up results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.demo_figure import SHOWN, draw

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["zero", "one", "two"]


def figure(directory: Path) -> str:
    files = {}
    for number in range(SHOWN):
        path = directory / f"{number}.png"
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(path)
        files[f"test/{number}.png"] = path
    results = [
        {
            "class_names": NAMES,
            "zero_shot": {"top1": 0.5},
            "adapted": {"top1": top1},
            "per_class": {"zero_shot": [1.0, 0.25, 0.25], "adapted": [1.0, top1, top1]},
        }
        for top1 in (0.6, 0.8)
    ]
    shown = [{"image": name, "before": "one", "after": "two", "label": "two"} for name in files]
    changed = {"count": 40, "right": 30, "wrong": 4, "shown": shown}
    draw(results, changed, files, directory / "figure.svg")
    return (directory / "figure.svg").read_text(encoding="utf-8")


def test_the_figure_states_the_results_and_is_the_same_every_time(tmp_path):
    found = figure(tmp_path)
    texts = [re.sub(r"\s+", " ", text) for text in re.findall(r"<text[^>]*>([^<]*)", found)]
    assert "zero-shot CLIP: 50.0%" in texts
    assert "adapted without labels: 70.0 ± 14.1%" in texts
    assert set(NAMES) <= set(texts)
    assert found.count("<image") == SHOWN
    assert "40 images changed class, 30 to the right one and 4 away from it." in " ".join(texts)
    assert figure(tmp_path) == found


def test_the_figure_in_the_repository_is_of_the_demo():
    found = (ROOT / "docs" / "assets" / "demo.svg").read_text(encoding="utf-8")
    assert "5 seeds" in found and found.count("<image") == SHOWN
