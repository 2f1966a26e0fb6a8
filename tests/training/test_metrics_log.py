"""Metrics on disk: no step lost, none twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.training import trackers
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


class FakeWandb:
    """The part of the package that is used, and the calls it got."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def init(self, **settings):
        self.calls.append(("init", settings))
        return self

    def log(self, metrics, step, commit):
        assert commit  # or a kill loses the row
        self.calls.append(("log", step, metrics))

    def finish(self, exit_code):
        self.calls.append(("finish", exit_code))


@pytest.fixture
def fake_wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_weights_and_biases_gets_the_log_and_continues_its_run(tmp_path, fake_wandb):
    def log(start: int, steps: list[int], error: type[BaseException] | None = None) -> None:
        with RunLog(tmp_path / "run", start, 10, ("wandb",), {"seed": 3}) as log:
            for step in steps:
                log.write(step, {"loss": 10.0 - step})
            log.flush()
            if error:
                raise error

    (tmp_path / "run").mkdir()
    with pytest.raises(KeyboardInterrupt):
        log(0, [2, 4], KeyboardInterrupt)
    log(4, [6])
    kinds = [call[0] for call in fake_wandb.calls]
    assert kinds == ["init", "log", "log", "finish", "init", "log", "finish"]
    first, second = (call[1] for call in fake_wandb.calls if call[0] == "init")
    assert first == second and first["resume"] == "allow" and first["config"] == {"seed": 3}
    assert first["reinit"] == "create_new"  # a run of the caller's own program is left alone
    assert (first["id"], first["name"]) == ((tmp_path / "run/wandb_id").read_text().strip(), "run")
    logged = [(step, metrics["loss"]) for kind, step, metrics in filter(is_log, fake_wandb.calls)]
    assert logged == [(line["step"], line["loss"]) for line in lines(tmp_path / "run")]
    assert [call[1] for call in fake_wandb.calls if call[0] == "finish"] == [1, 0]
    assert not (tmp_path / "run/tensorboard").exists()
    (tmp_path / "run/wandb_id").write_bytes(b"\xff/../x")  # a damaged id is replaced
    log(6, [8])
    assert fake_wandb.calls[-3][1]["id"] not in (first["id"], "")


def is_log(call: tuple) -> bool:
    return call[0] == "log"


def test_weights_and_biases_cannot_start(tmp_path, fake_wandb, monkeypatch):
    def refuse(**settings):
        raise FakeWandb.Error("api_key not configured")

    monkeypatch.setattr(fake_wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"api_key not configured\. Log in with `wandb login`"):
        RunLog(tmp_path, 0, 10, ("wandb",))


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)])
def test_a_missing_package_names_the_extra(monkeypatch, found):
    """The folder `wandb` that the library makes is a module spec without origin."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: found)
    trackers.check_installed(("tensorboard",))
    with pytest.raises(ConfigError, match=r"pip install .*\[wandb\]'"):
        trackers.check_installed(("tensorboard", "wandb"))


def test_both_trackers_get_the_same(tmp_path, fake_wandb):
    with RunLog(tmp_path, 0, 10, ("tensorboard", "wandb")) as log:
        log.write(2, {"loss": 0.5})
    assert scalars(tmp_path, "loss") == [(2, 0.5)]
    assert ("log", 2, {"loss": 0.5}) in fake_wandb.calls


@pytest.mark.full
def test_weights_and_biases_offline(tmp_path):
    """With the package itself: two sessions of one run, one id."""
    pytest.importorskip("wandb")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from lattec_jax.training.metrics_log import RunLog\n"
        "start = int(sys.argv[1])\n"
        "with RunLog(Path('.'), start, 4, ('wandb',), {'seed': 3}) as log:\n"
        "    for step in (start + 1, start + 2): log.write(step, {'loss': 1 / step})\n"
    )
    environment = os.environ | {"WANDB_MODE": "offline", "HOME": str(tmp_path)}
    for start in ("0", "2"):
        subprocess.run(
            [sys.executable, "-c", code, start], cwd=tmp_path, env=environment, check=True
        )
    run_id = (tmp_path / "wandb_id").read_text().strip()
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2 and all(path.name.endswith(f"-{run_id}") for path in sessions)
    stored = [b"".join(p.read_bytes() for p in path.glob("*.wandb")) for path in sessions]
    assert all(run_id.encode() in content and b"loss" in content for content in stored)


@pytest.mark.parametrize(
    ("given", "names"),
    [("tensorboard,wandb", ("tensorboard", "wandb")), ("wandb", ("wandb",)), ("", ()), ("()", ())],
)
def test_trackers_on_the_command_line(given, names):
    assert (
        parse(["x", "--config=configs/demo.py", f"--config.trackers={given}"])[0].trackers == names
    )


@pytest.mark.parametrize("given", ["wandbb", "wandb,wandb", "tensorboard;wandb"])
def test_unknown_trackers_are_refused(given):
    with pytest.raises(ConfigError, match=r"config\.trackers: expected none, one or both of"):
        parse(["x", "--config=configs/demo.py", f"--config.trackers={given}"])
