"""Runs that a signal ends, or whose newest checkpoint is damaged, go on as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator

import pytest

from lattec_jax import report, train, train_results
from lattec_jax.runtime.preemption import Terminated
from lattec_jax.training.metrics_log import RunLog
from tests.runs import arguments, assert_equal, logged, run


@contextlib.contextmanager
def sigterm_in(monkeypatch, step: int) -> Iterator[None]:
    """Within it a run gets SIGTERM in its step `step`."""
    advance = RunLog.advance

    def interrupt(self):
        advance(self)
        if self._bar.n == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "advance", interrupt)
        yield


def saved(directory) -> list[int]:
    return sorted(int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit())


def test_a_signal_saves_the_step_under_way_and_a_damaged_checkpoint_costs_nothing(
    trained,
    monkeypatch,
    caplog,
):
    command = ("labeled", "--config.log_every=2")
    run(*command, "--workdir=whole")
    with (
        sigterm_in(monkeypatch, 5),
        pytest.raises(Terminated, match="SIGTERM: the last step is saved"),
    ):
        train.main(arguments(*command, "--workdir=broken"))
    directory = trained / "broken"
    assert saved(directory) == [4, 5]
    # Step 5 is saved, but nothing is logged that another run would not log.
    assert [line["step"] for line in logged(directory)] == [2, 4]

    manifest = directory / "checkpoints/5/state/manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:-3])
    found = run(*command, "--workdir=broken")
    assert "checkpoint of step 5 cannot be used and is now" in caplog.text
    assert (directory / "checkpoints/damaged-5").is_dir()
    assert_equal(trained / "whole", directory)
    page = (directory / "report.html").stat().st_size

    # Lost between the last checkpoint and the results: only the results are made again.
    (directory / "report_data.json").unlink()
    (directory / "report.html").unlink()
    (directory / "results.json").unlink()
    (directory / "classifier.safetensors").unlink()
    (directory / "model/model.safetensors").unlink()
    again = run(*command, "--workdir=broken")
    times = ("train_seconds", "images_per_second")
    assert {k: v for k, v in again.items() if k not in times} == {
        k: v for k, v in found.items() if k not in times
    }
    recorded = json.loads((directory / "checkpoints/6/extra/metadata").read_text())["seconds"]
    assert again["train_seconds"] >= recorded > 0
    assert again["images_per_second"] > 0  # of the sessions before
    assert_equal(trained / "whole", directory)
    assert (directory / "report.html").stat().st_size == pytest.approx(page, abs=100)


def test_a_run_that_is_killed_before_its_results_lacks_nothing_of_its_report(
    trained,
    monkeypatch,
):
    """results.json ends a run: what only a training can write is there before."""
    write = train_results.write_json

    def killed(path, content):
        write(path, content)
        raise Terminated("SIGTERM")

    monkeypatch.setattr(train_results, "write_json", killed)
    with pytest.raises(Terminated):
        train.main(arguments("labeled", "--workdir=killed"))
    directory = trained / "killed"
    assert not (directory / "report.html").exists()
    report.main(["report", "--workdir=killed"])
    assert "data:image/jpeg" in (directory / "report.html").read_text(encoding="utf-8")
