"""Commands that are killed at moments spread over all they do, and started again: the same files.

The moments are file operations, counted (`tests/kill_at.py`), not times. `KILLS` has the share of
each tier. A failure names the operation before which the process was killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lattec_jax.training.checkpoint_checksums import damage
from tests.runs import arguments, make_inputs, repeated

TIMES = ("train_seconds", "images_per_second")
# What the page shows of times: two values and a chart.
SHOWN_TIMES = re.compile(
    rb"(?<=<dt>training time \(s\)</dt><dd>)[^<]*|(?<=<dt>images/s</dt><dd>)[^<]*"
    rb"|<h3>Throughput</h3>.*?</figure>"
)
KILLS = [pytest.param(3, marks=pytest.mark.full), pytest.param(50, marks=pytest.mark.soak)]
ARGUMENTS = arguments("labeled", "--config.compute.eval_batch_size=8", "--config.max_checkpoints=1")


class Killed:
    """A command, run in a directory that begins each time with the same files.

    Args:
        scratch: an empty directory.
        prepare: fills a directory with what the command needs.
        command: module and arguments.
    """

    def __init__(self, scratch: Path, prepare, command: list[str]) -> None:
        self.place, self._inputs, self._whole = (scratch / n for n in ("place", "inputs", "whole"))
        self._log, self._command = scratch / "operations", command
        self._environment = {
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.place.mkdir()
        prepare(self)
        shutil.copytree(self.place, self._inputs)
        self.run(0, *command)
        self.operations = self._log.read_text(encoding="utf-8").splitlines()
        self.place.rename(self._whole)

    def run(self, kill_at: int, *command: str) -> None:
        """Run a command; it must be killed, or end well where `kill_at` is 0."""
        started = [sys.executable, "-m", "tests.kill_at", str(kill_at), str(self.place)]
        found = subprocess.run(
            [*started, str(self._log), *command],
            cwd=self.place,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        allowed = (0, -signal.SIGKILL) if kill_at else (0,)
        assert found.returncode in allowed, found.stdout.decode()[-3000:]
        self.killed = found.returncode != 0

    def kill_and_repeat(self, kills: int) -> None:
        """Kill it at so many moments, each in a fresh directory; nearly all must meet it alive."""
        met = 0
        moments = np.linspace(1, len(self.operations), kills).round().astype(int).tolist()
        for moment in moments:
            shutil.rmtree(self.place, ignore_errors=True)
            shutil.copytree(self._inputs, self.place)
            self.run(moment, *self._command)
            met += self.killed
            operations = self._log.read_text(encoding="utf-8").splitlines()
            self.run(0, *self._command)
            assert_same(self._whole, self.place, f"killed before {operations[-1]}")
        # The last operations are of threads, whose number differs a little from run to run.
        assert met >= kills - max(1, kills // 5)


def assert_same(whole: Path, place: Path, when: str) -> None:
    """The same files with the same content; only times, and what says them, may differ."""
    expected, found = (contents(directory) for directory in (whole, place))
    assert found.keys() == expected.keys(), (when, found.keys() ^ expected.keys())
    assert [name for name in expected if found[name] != expected[name]] == [], when


def contents(directory: Path) -> dict[str, bytes | None]:
    """What must be equal of each file; None: only that it is there, and a directory."""
    found: dict[str, bytes | None] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir():
            if "checkpoints/" not in name or path.parent.name == "checkpoints":
                found[name] = None
            if path.parent.name == "checkpoints":
                assert damage(path) == "", name
        elif "tensorboard/" in name or "checkpoints/" in name:
            continue  # a file for each session; names and times of Orbax
        elif path.name == "results.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            found[name] = json.dumps({k: v for k, v in values.items() if k not in TIMES}).encode()
        elif path.name == "metrics.jsonl":
            found[name] = json.dumps(repeated(path.parent)).encode()
        else:
            found[name] = path.read_bytes()
            if path.name == "report.html":
                found[name] = SHOWN_TIMES.sub(b"", found[name])
    return found


def options(*names: str) -> list[str]:
    """The configuration's arguments, without some."""
    return [a for a in ARGUMENTS[1:] if not a.startswith(names)]


@pytest.mark.parametrize("kills", KILLS)
def test_training_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, kills):
    train = ["lattec_jax.train", *options(), "--workdir=run"]
    killed = Killed(tmp_path, lambda self: make_inputs(self.place), train)
    reached = " ".join(killed.operations)
    parts = ("labeled/train", "image_caches", "pseudo_labels", "descriptions", "run/checkpoints/6")
    for part in parts:
        assert part in reached
    killed.kill_and_repeat(kills)


@pytest.mark.parametrize("kills", KILLS)
def test_describing_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, kills):
    def prepare(self):
        make_inputs(self.place)
        self.run(0, "lattec_jax.pseudo_label", *options())

    describe = ["captioning.describe", *options()]
    Killed(tmp_path, prepare, describe).kill_and_repeat(kills)


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_predicting_killed_anywhere_ends_as_if_it_had_not_been(tmp_path, kind, kills):
    def prepare(self):
        make_inputs(self.place)
        self.run(0, "lattec_jax.train", *options(), "--workdir=run")

    predict = ["lattec_jax.predict", "--workdir=run", f"--out=out.{kind}", "labeled"]
    Killed(tmp_path, prepare, predict).kill_and_repeat(kills)
