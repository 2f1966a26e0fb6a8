"""Metrics on disk: no step lost, none twice."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lattec_jax.runtime.errors import DataError
from lattec_jax.training.metrics_log import RunLog


@pytest.fixture(autouse=True)
def event_files_in_order(monkeypatch):
    """Files of one second and one process are read in the order of their numbers as text."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def write(workdir, start: int, steps: list[int], **metrics: float) -> None:
    with RunLog(workdir, start, 10) as log:
        for step in steps:
            log.advance()
            log.write(step, {"loss": 10.0 - step, **metrics})


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def scalars(workdir, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(workdir / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_resumed_log_has_every_step_once(tmp_path):
    write(tmp_path, 0, [2, 4, 6])
    write(tmp_path, 4, [6, 8, 10])  # the checkpoint of step 4 was the last
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10]
    assert scalars(tmp_path, "loss") == [(s, 10.0 - s) for s in (2, 4, 6, 8, 10)]


def test_a_half_written_last_line_is_dropped(tmp_path):
    write(tmp_path, 0, [2, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    write(tmp_path, 4, [6])
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path):
    write(tmp_path, 0, [2, 4])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 2', '"step" 2'))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: expected a JSON object"):
        write(tmp_path, 4, [6])
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_are_a_damaged_line_too(tmp_path):
    write(tmp_path, 0, [2, 4])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\xff\xfe")
    write(tmp_path, 4, [])
    assert path.read_bytes() == whole
    path.write_bytes(b"\xff\n" + whole)
    with pytest.raises(DataError, match=r"line 1: expected a JSON object"):
        write(tmp_path, 4, [6])
    assert path.read_bytes() == b"\xff\n" + whole


def test_what_is_not_finite_is_null(tmp_path):
    write(tmp_path, 0, [1], gradient_norm=float("nan"), scale=float("inf"))
    assert lines(tmp_path) == [{"step": 1, "loss": 9.0, "gradient_norm": None, "scale": None}]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with RunLog(tmp_path, 0, 10) as log:
        log.write(1, {"loss": 0.5})
        assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]  # also where the run is killed now


def test_a_run_interrupted_twice_has_every_step_once(tmp_path):
    write(tmp_path, 0, [2, 4])
    write(tmp_path, 2, [4, 6, 8])
    write(tmp_path, 6, [8, 10])
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10]
    assert [step for step, _ in scalars(tmp_path, "loss")] == [2, 4, 6, 8, 10]


def test_a_run_that_starts_again_from_nothing_keeps_nothing(tmp_path):
    """It was stopped before its first checkpoint."""
    write(tmp_path, 0, [2, 4])
    write(tmp_path, 0, [2, 4, 6])
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]
    assert [step for step, _ in scalars(tmp_path, "loss")] == [2, 4, 6]


def test_another_thread_may_flush_the_log_at_any_time(tmp_path):
    def flush(log: RunLog) -> None:
        for _ in range(300):
            log.flush()

    with ThreadPoolExecutor() as pool:
        with RunLog(tmp_path, 0, 200) as log:
            flushed = pool.submit(flush, log)
            for step in range(1, 201):
                log.write(step, {"loss": 1.0})
        log.flush()  # closed, and on disk
        flushed.result()  # raises what it raised
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 201))
    assert len(scalars(tmp_path, "loss")) == 200
