"""Files of a run with unexpected content, and files of older versions."""

from __future__ import annotations

import json
import os

import pytest

from lattec_jax.paper_tables.cells import read_run
from lattec_jax.reporting import page
from lattec_jax.runtime import run_directory, schemas
from lattec_jax.runtime.errors import ConfigError, DataError
from tests.fuzz.targets_runs import INPUTS, SWEEP_RESULTS, targets
from tests.reporting.example import example, write_files


def changed(content: dict, path: str, value: object) -> dict:
    """JSON content with another value at a dotted path."""
    content = json.loads(json.dumps(content))
    *sections, last = path.split(".")
    inner = content
    for key in sections:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return content


ALLOWED = (
    ("health.metrics", {}),
    ("health.alarms.0.classes", []),
    ("examples.0.texts.0.kind", "words"),
)


@pytest.mark.parametrize("value", ["words", -1.5, [], {}, True])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("results.json", "class_names"),
        ("results.json", "zero_shot.top1"),
        ("results.json", "per_class.adapted.0"),
        ("results.json", "health.alarms.0.classes"),
        ("results.json", "health.metrics"),
        ("results.json", "health.class_fractions.adapted"),
        ("results.json", "label_free.prototype_drift"),
        ("results.json", "descriptions.image.found"),
        ("results.json", "n_test"),
        ("report_data.json", "prototypes.nearest.0.0"),
        ("report_data.json", "prototypes.cosines.0"),
        ("report_data.json", "confusion.before.0.2"),
        ("report_data.json", "changed.count"),
        ("report_data.json", "changed.shown.0.thumbnail"),
        ("report_data.json", "examples.0.texts.0.kind"),
    ],
)
def test_a_wrong_type_anywhere_is_named(tmp_path, name, key, value):
    run = example(4, images=50)
    write_files(run, tmp_path / "run")
    content = run.results if name == "results.json" else run.data
    path = tmp_path / "run" / name
    path.write_text(json.dumps(changed(content, key, value)), encoding="utf-8")
    if (key, value) in ALLOWED:
        assert page.write(tmp_path / "run")
        return
    item = key.split(".")[0]
    with pytest.raises(DataError, match=rf"{name}: .*{item}.*repeat the run's command") as refused:
        page.write(tmp_path / "run")
    assert len(str(refused.value)) < 2000


def test_a_class_that_does_not_exist_is_named(tmp_path):
    run = example(4, images=50)
    write_files(run, tmp_path / "run")
    path = tmp_path / "run" / "report_data.json"
    path.write_text(json.dumps(changed(run.data, "confusion.after.0.0", 4)), encoding="utf-8")
    with pytest.raises(DataError, match=r"confusion\.after: expected classes from 0 to 3, found 4"):
        page.write(tmp_path / "run")


def test_thumbnails_are_data_only(tmp_path):
    run = example(4, images=50)
    write_files(run, tmp_path / "run")
    path = tmp_path / "run" / "report_data.json"
    for address in ("http://host/x.jpg", "data:text/html,x", "data:image/jpeg;base64,x y"):
        content = changed(run.data, "examples.0.thumbnail", address)
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(DataError, match=r"examples\[0\]\.thumbnail"):
            page.write(tmp_path / "run")


def test_results_of_older_versions_are_read(tmp_path):
    run = example(4, images=50)
    write_files(run, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    later = ("descriptions", "unreadable", "device", "version", "wise_ft", "weights_sha256")
    older = {key: value for key, value in run.results.items() if key not in later}
    path.write_text(json.dumps(older), encoding="utf-8")
    assert page.write(tmp_path / "run").exists()
    path.write_text(
        json.dumps({k: v for k, v in SWEEP_RESULTS.items() if k not in ("n_left_out", "dtype")})
    )
    assert read_run(path)["n_left_out"] == {"train": 0, "test": 0}


@pytest.mark.parametrize("value", [3, [1], {"a": 1}, "ab", [["a"]]])
def test_inputs_of_a_run_are_checked(tmp_path, value):
    path = tmp_path / run_directory.INPUTS
    path.write_text(json.dumps(INPUTS | {"class_names": value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"inputs\.json: class_names.*restore the run's own file"):
        run_directory.read_inputs(tmp_path)


def test_special_files_and_deeply_nested_json_are_refused(tmp_path):
    path = tmp_path / "results.json"
    os.mkfifo(path)
    with pytest.raises(DataError, match="expected a regular file, found a FIFO"):
        read_run(path)
    path.unlink()
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested more than 64 deep"):
        read_run(path)
    path.write_text('{"n": ' + "9" * 5000 + "}")
    with pytest.raises(DataError, match=r"results\.json is not JSON"):
        read_run(path)


def test_an_incomplete_last_line_of_the_log_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n{"step": 2, "lo')
    assert [line for _, line in schemas.log_lines(path)] == [{"step": 1, "loss": None}]
    path.write_bytes(b'{"step": 1}\n{"step": "2"}\n')
    with pytest.raises(DataError, match=r"line 2: step: expected .*integer, found '2'; repair or"):
        list(schemas.log_lines(path))
    path.write_bytes(b'{"step": 1, "a": "' + b"x" * 2**20 + b'"}\n')
    with pytest.raises(DataError, match="line 1 has more than 1,048,576 bytes"):
        list(schemas.log_lines(path))


def test_every_fuzz_target_reads_its_valid_file(tmp_path):
    for target in targets(tmp_path / "beside").values():
        path = tmp_path / f"valid{target.suffix}"
        path.write_bytes(target.valid)
        target.read(path)
