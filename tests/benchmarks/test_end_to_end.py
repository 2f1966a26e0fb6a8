"""The stopwatch of `benchmarks.end_to_end`, and a small run of it."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import end_to_end
from benchmarks.end_to_end import LOOP, ROWS, Stopwatch


def test_every_second_is_of_one_label(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    def outer() -> None:
        wait(1)
        owner.inner(2)
        wait(4)
        owner.inner(8)

    owner, watch = SimpleNamespace(inner=wait), Stopwatch()
    watch.watch(owner, "inner", "inner")
    watch.run("outer", outer)
    with pytest.raises(ZeroDivisionError):
        watch.run("broken", lambda: (wait(16), 1 / 0))
    assert watch.seconds == {"inner": 10.0, "outer": 5.0, "broken": 16.0}


@pytest.mark.soak
def test_a_small_run_accounts_for_all_of_its_time(monkeypatch, capsys):
    small = ["--images=96", "--batch=32", "--steps=6", "--ways", "device", "--predict=40"]
    monkeypatch.setattr(sys, "argv", ["end_to_end", *small])
    end_to_end.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (run,) = found["runs"].values()
    assert sum(run[row] for row in ROWS) == pytest.approx(run["total"])
    assert all(run[row] >= 0 for row in ROWS)
    assert 0 < run[LOOP] < run["total"] and run[ROWS[5]] + run[ROWS[6]] <= run[LOOP] + 0.1
    assert run["images_per_second"] <= 5 * 32 / run[LOOP] * 1.01
    assert [label for label, _, _ in found["prediction"]] == [
        "4 files",
        "40 files",
        "40 files, already done",
    ]
