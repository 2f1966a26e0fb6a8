"""A sweep on the demo, and results that look like those of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lattec_jax.data.datasets.coop import PROTOCOL
from lattec_jax.paper_tables.plan import Sweep, choose_tables, config_argument
from lattec_jax.paper_tables.tables import TABLES
from lattec_jax.runtime.config import parse, to_json

COUNTS = {
    "eurosat": (10, 18_900, 8_100),
    "dtd": (47, 3_948, 1_692),
    "food101": (101, 70_700, 30_300),
    "demo": (10, 1_000, 797),
}


def results_of(dataset: str, top1: float | None) -> dict[str, object]:
    """What `results.json` of a run on a data set of `COUNTS` holds, as tables need it."""
    return {
        "adapted": None if top1 is None else {"top1": top1, "top5": 1.0},
        "dataset": dataset,
        "protocol": PROTOCOL,
        "preset": "paper",
        "model": "ViT-B-32",
        "weights": "weights/ViT-B-32",
        "weights_sha256": "ab" * 32,
        "weights_source": {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
        "dtype": "float32",
        "device": "1 x cpu",
        "n_train": COUNTS[dataset][1],
        "n_test": COUNTS[dataset][2],
        "class_names": ["a name"] * COUNTS[dataset][0],
        "unreadable": [],
        "n_left_out": {"train": 0, "test": 0},
    }


@pytest.fixture
def sweep(tmp_path) -> Callable[..., Sweep]:
    """Makes a sweep below `tmp_path` of the given tables, data sets and seeds."""

    def make(tables: str, datasets: str = "demo", seeds: tuple[int, ...] = (0, 1)) -> Sweep:
        keys = tables.split(",")
        return Sweep(choose_tables(keys), tuple(datasets.split(",")), seeds, tmp_path / "sweep")

    return make


@pytest.fixture
def write_run(tmp_path) -> Callable[..., Path]:
    """Writes a run: data set, row and seed, top-1 as a fraction; changes of its results, and
    overrides of its configuration."""
    rows = {row.name: row for table in TABLES.values() for row in table.rows}

    def write(
        dataset: str,
        row: str,
        seed: int,
        top1: float | None,
        /,
        overrides: tuple[str, ...] = (),
        **changed: object,
    ) -> Path:
        found = results_of(dataset, top1) | changed
        path = tmp_path / "sweep" / dataset / f"{row}-s{seed}" / "results.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
        file = config_argument(f"configs/{dataset}.py", str(found["preset"]), rows[row].method)
        argv = ["train", file, *rows[row].overrides, *overrides]
        config, _ = parse([*argv, f"--config.seed={seed}"])
        path.with_name("config.json").write_text(to_json(config), encoding="utf-8")
        return path

    return write
