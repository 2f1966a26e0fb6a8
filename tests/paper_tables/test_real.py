"""A real sweep of the demo, killed half-way and taken up by two workers (tier soak)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paper_tables.test_runner import until

ARGUMENTS = [
    "--tables=5",
    "--datasets=demo",
    "--seeds=0",
    "--out=sweep",
    "--config.train.max_steps=3",
]


def start(place: Path) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "lattec_jax.sweep", *ARGUMENTS]
    return subprocess.Popen(
        command,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.soak
def test_a_real_sweep_killed_half_way_is_finished_by_two_workers(tmp_path):
    killed = start(tmp_path)
    runs = tmp_path / "sweep" / "demo"

    def found(name: str) -> set[Path]:
        return {path.parent for path in runs.glob(f"*-s0/{name}")}

    # Into a run that follows a finished one.
    until(lambda: found("results.json") and found("config.json") - found("results.json"), 600)
    os.killpg(killed.pid, signal.SIGKILL)  # as when a machine goes down: worker and run
    killed.communicate()
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*-s0/results.json")}
    assert 1 <= len(before) < 4

    workers = [start(tmp_path) for _ in range(2)]
    printed = [worker.communicate(timeout=400)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    names = {"latteclip-s0", "group-of-2-s0", "group-of-8-s0", "group-of-16-s0"}
    assert {path.parent.name for path in runs.glob("*-s0/results.json")} == names
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    # A log has a line for each time that its job was begun: once, and once more for the killed one.
    begun = {
        log.name: log.read_text(errors="replace").count("$ python -m")
        for log in (tmp_path / "sweep" / "logs").glob("*.log")
    }
    again = [name for name, count in begun.items() if count != 1]
    assert len(again) <= 1 and all(begun[name] == 2 for name in again), begun
    tables = (tmp_path / "sweep" / "tables.md").read_text(encoding="utf-8")
    assert "4 of 4 runs are there" in tables
