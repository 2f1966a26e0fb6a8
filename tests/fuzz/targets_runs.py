"""Fuzz targets: the files of a run, of pseudo-labels, of predictions and of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lattec_jax.data import pseudo_labels
from lattec_jax.inference.prediction_files import PredictionFile, header, line
from lattec_jax.paper_tables.cells import read_results
from lattec_jax.paper_tables.plan import Sweep, choose_tables
from lattec_jax.reporting import health, page
from lattec_jax.reporting.health_metrics import Baseline
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import flatten, from_json, load_run_config, parse, to_json
from lattec_jax.runtime.errors import differences
from lattec_jax.sweep import write_tables
from lattec_jax.training import metrics_log
from tests.fuzz.mutations import Target
from tests.paper_tables.conftest import results_of
from tests.reporting.example import example, write_files

SOURCE = pseudo_labels.provenance("ab" * 32, [("cat", "tom"), ("dög",)], ["a photo of a {}."])
INPUTS = {
    "weights_sha256": "ab" * 32,
    "init_sha256": None,
    "class_names": ["cat", "dög"],
    "training_images": "cd" * 32,
    "test_images": None,
    "pseudo_labels_sha256": "ef" * 32,
    "descriptions_sha256": None,
    "batch_size": 64,
}
SETTINGS = {"model_sha256": "ab" * 32, "class_names": ["cat", "dög"]}
SWEEP_RESULTS = results_of("eurosat", 0.5)


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def targets(tmp_path: Path) -> dict[str, Target]:
    """The formats by name.

    Args:
        tmp_path: a directory for the files that are read with a target; created if missing.
    """
    tmp_path.mkdir(exist_ok=True)
    config, _ = parse(["train", "--config=configs/eurosat.py"])
    return {
        "config.json": Target(to_json(config).encode(), ".json", _read_config),
        "inputs.json": Target(
            _json(INPUTS), ".json", _in_run(tmp_path / "i", run_directory.INPUTS)
        ),
        **_of_report(tmp_path / "report"),
        "metrics.jsonl, log": Target(
            b"".join(_json(own) + b"\n" for own in example().log),
            ".jsonl",
            _in_run(tmp_path / "log", run_directory.METRICS),
        ),
        **_of_pseudo_labels(tmp_path / "labels"),
        **_of_predictions(tmp_path / "predictions"),
        **_of_sweep(tmp_path / "sweep", to_json(config).encode()),
    }


def _read_config(path: Path) -> None:
    assert to_json(load_run_config(path))
    dict(flatten(from_json(path)))


def _in_run(directory: Path, name: str) -> Callable[[Path], None]:
    """Return a reader that replaces a file of a work directory."""
    directory.mkdir()

    def read(path: Path) -> None:
        (directory / name).write_bytes(path.read_bytes())
        if name == run_directory.INPUTS:
            found = run_directory.read_inputs(directory)
            differences(found, INPUTS)
            list(found.get("class_names") or ())
            return
        metrics_log._drop_after(directory / name, 100)
        lines = metrics_log.read_log(directory)
        vectors = np.eye(3, dtype=np.float32)
        labels = np.arange(30) % 3
        baseline = Baseline(["a", "b", "c"], vectors, labels, 8, {"image": 1.0})
        health.HealthMonitor(baseline, lines)
        assert health.health_report(baseline, vectors, labels, lines)["verdict"]

    return read


def _of_report(directory: Path) -> dict[str, Target]:
    """The files that the report reads."""
    write_files(example(4, images=50), directory)

    def read(name: str) -> Callable[[Path], None]:
        valid = (directory / name).read_bytes()

        def replaced(path: Path) -> None:
            try:
                (directory / name).write_bytes(path.read_bytes())
                page.write(directory)
            finally:
                (directory / name).write_bytes(valid)

        return replaced

    names = (
        run_directory.CONFIG,
        run_directory.RESULTS,
        run_directory.REPORT_DATA,
        run_directory.METRICS,
    )
    return {
        f"{name}, page": Target(
            (directory / name).read_bytes(), Path(name).suffix, read(name)
        )
        for name in names
    }  # fmt: skip


def _of_pseudo_labels(directory: Path) -> dict[str, Target]:
    directory.mkdir()
    labels, side = directory / "labels.jsonl", directory / "labels.json"
    images = ["a.jpg", "ü.jpg", "c.jpg"]
    values = np.array([0.9, 0.6, 0.3], np.float32)
    pseudo_labels.write(labels, images, np.array([1, 0, 1]), values, values, SOURCE)
    valid = {path: path.read_bytes() for path in (labels, side)}

    def read(changed: Path) -> Callable[[Path], None]:
        def replaced(path: Path) -> None:
            for own, content in valid.items():
                own.write_bytes(path.read_bytes() if own == changed else content)
            found = pseudo_labels.read(labels, None, SOURCE)
            assert np.isfinite(found.scores).all() and found.labels.dtype == np.int32

        return replaced

    return {
        "pseudo-labels": Target(valid[labels], ".jsonl", read(labels)),
        "pseudo-labels, side file": Target(valid[side], ".json", read(side)),
    }


def _of_predictions(directory: Path) -> dict[str, Target]:
    directory.mkdir()
    found = {}
    for kind in ("jsonl", "csv"):
        out = directory / f"out.{kind}"
        side = out.with_name(out.name + ".settings.json")
        with PredictionFile(out, kind, 2, SETTINGS) as file:
            for image, error in (("a.jpg", None), ('b,"c\n.jpg', None), ("d.jpg", "no image")):
                answers = ((), (), ()) if error else (["cat", "dög"], [0, 1], [0.75, 0.25])
                file.append(line(kind, image, *answers, error, 2, 5))
        valid = {out: out.read_bytes(), side: side.read_bytes()}
        assert valid[out].startswith(header(kind, 2))
        for changed, name in ((out, kind), (side, f"{kind}, side file")):
            reader = _continues(out, kind, valid, changed)
            found[f"predictions.{name}"] = Target(valid[changed], changed.suffix, reader)
    return found


def _continues(
    out: Path, kind: str, valid: dict[Path, bytes], changed: Path
) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        for own, content in valid.items():
            own.write_bytes(path.read_bytes() if own == changed else content)
        with PredictionFile(out, kind, 2, SETTINGS) as file:
            assert all(isinstance(image, str) for image in file.done)

    return read


def _of_sweep(directory: Path, config: bytes) -> dict[str, Target]:
    plan = Sweep(choose_tables(["1"]), ("eurosat",), (0,), directory)
    row = next(row for row in plan.rows if row.name == "latteclip")
    run = plan.workdir("eurosat", row, 0)
    run.mkdir(parents=True)
    valid = {run / run_directory.RESULTS: _json(SWEEP_RESULTS), run / run_directory.CONFIG: config}

    def read(changed: Path) -> Callable[[Path], None]:
        def replaced(path: Path) -> None:
            for own, content in valid.items():
                own.write_bytes(path.read_bytes() if own == changed else content)
            assert write_tables(plan, read_results(plan)).encode()

        return replaced

    return {
        f"{path.name}, sweep": Target(content, ".json", read(path))
        for path, content in valid.items()
    }
