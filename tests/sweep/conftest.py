"""A sweep on the demo, and results that look like those of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lattec_jax.data.coop import PROTOCOL
from lattec_jax.sweep.plan import Sweep, choose_tables


@pytest.fixture
def sweep(tmp_path) -> Callable[..., Sweep]:
    """Makes a sweep below `tmp_path` of the given tables, data sets and seeds."""

    def make(tables: str, datasets: str = "demo", seeds: tuple[int, ...] = (0, 1)) -> Sweep:
        keys = tables.split(",")
        return Sweep(choose_tables(keys), tuple(datasets.split(",")), seeds, tmp_path / "sweep")

    return make


@pytest.fixture
def write_run(tmp_path) -> Callable[..., Path]:
    """Writes the results of a run: data set, row and seed, top-1 as a fraction."""

    def write(
        dataset: str, row: str, seed: int, top1: float | None, protocol: str = PROTOCOL
    ) -> Path:
        found = {
            "adapted": None if top1 is None else {"top1": top1, "top5": 1.0},
            "protocol": protocol,
            "preset": "paper",
            "model": "ViT-B-32",
            "weights": "weights/ViT-B-32",
            "dtype": "float32",
            "device": "1 x cpu",
            "n_train": 18_900,
            "n_test": 8_100,
        }
        path = tmp_path / "sweep" / dataset / f"{row}-s{seed}" / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
        return path

    return write
