"""The gains on the demo's training images, of a run of two steps."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks import demo_values


@pytest.mark.soak
def test_gains_on_the_training_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_values, "SETTINGS", (demo_values.Setting(2, 0.5, 0.25),))
    cache = jax.config.jax_compilation_cache_dir
    try:
        demo_values.main(["demo_values", f"--out={tmp_path}", "--seeds=1", "--steps=2"])
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)
    row, _, last = capsys.readouterr().out.splitlines()[2:]
    steps, alpha, momentum, true, shuffled = row.strip("| ").split(" | ")
    assert (steps, alpha, momentum) == ("2", "0.5", "0.25")
    config = json.loads((tmp_path / "2-0.5-0.25-shuffled-s0" / "config.json").read_text())
    assert config["descriptions"]["shuffle"] and config["method"]["momentum"] == 0.25

    (labels,) = (tmp_path / "artifacts/digits/pseudo_labels").glob("*.jsonl")
    records = [json.loads(line) for line in labels.read_text().splitlines()]
    digits = load_digits().target
    right = [r["label"] == digits[int(r["image"][-8:-4])] for r in records if "image" in r]
    assert len(right) == 1000
    assert f"{100 * np.mean(right):.1f}% on the training images" in last
    # Two steps of the demo's learning rate change a little, and not more.
    assert all(-15 < float(gain) < 15 for gain in (true, shuffled))
