"""Workers of one sweep: each job once, whoever is killed; failures are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lattec_jax.paper_tables.runner as sweep_work
from lattec_jax.paper_tables.plan import Job
from lattec_jax.paper_tables.runner import run_jobs, summarize
from lattec_jax.runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
# A job that says that it begins, waits while its gate is closed and leaves its product behind.
FAKE = """
    import sys, time
    from pathlib import Path

    product, seconds = Path(sys.argv[1]), float(sys.argv[2])
    with open(product.parent / "begun.txt", "a") as file:
        file.write(product.name + "\\n")
    if seconds < 0:
        sys.exit("no such luck")
    time.sleep(seconds)
    while product.with_suffix(".gate").exists():
        time.sleep(0.02)
    product.write_text("{}")
"""
WORKER = """
    import sys
    from pathlib import Path
    from lattec_jax.paper_tables.runner import run_jobs, summarize
    from tests.paper_tables.test_runner import jobs_below

    place = Path(sys.argv[1])
    print(summarize(run_jobs(jobs_below(place), place / "sweep")))
"""


def jobs_below(place: Path, count: int = 8, seconds: float = 0.1) -> list[Job]:
    """Jobs whose command is the fake one."""
    return [
        Job(f"set/{n}", "fake_job", (str(place / str(n)), str(seconds)), place / str(n))
        for n in range(count)
    ]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A directory with the fake job, which other processes can import."""
    (tmp_path / "fake_job.py").write_text(textwrap.dedent(FAKE), encoding="utf-8")
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    return tmp_path


def start_worker(place: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "worker.py", str(place)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def begun(place: Path) -> list[str]:
    path = place / "begun.txt"
    return path.read_text().split() if path.exists() else []


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Return when the condition holds; fail when it does not for so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.full
def test_two_workers_never_run_the_same_job(place):
    workers = [start_worker(place) for _ in range(2)]
    printed = [worker.communicate(timeout=300)[0] for worker in workers]
    assert sorted(begun(place)) == [str(n) for n in range(8)]
    done = [int(text.split()[0]) for text in printed]
    assert sum(done) == 8
    assert all(job.done for job in jobs_below(place))


def test_a_killed_sweep_goes_on_and_leaves_the_orphan_alone(place, capsys, monkeypatch):
    gate = place / "2.gate"
    gate.touch()
    worker = start_worker(place)
    until(lambda: len(begun(place)) == 3)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    # The third job goes on without its worker: it is waited for and not begun again.
    say = sweep_work._print

    def say_and_open(line: str) -> None:
        say(line)
        if line.startswith("waiting"):
            gate.unlink(missing_ok=True)

    monkeypatch.setattr(sweep_work, "_print", say_and_open)
    monkeypatch.setattr(sweep_work, "_PAUSE", 0.02)
    outcome = run_jobs(jobs_below(place), place / "sweep")
    assert (outcome.done_before, len(outcome.done)) == (["set/0", "set/1", "set/2"], 5)
    assert "waiting for 1 jobs of other workers, the first: set/2" in capsys.readouterr().err
    assert sorted(begun(place)) == [str(n) for n in range(8)]
    assert len(run_jobs(jobs_below(place), place / "sweep").done_before) == 8


# A job that is asked to end, and saves when the test lets it.
PATIENT = """
    import signal, sys, time
    from pathlib import Path

    place = Path(sys.argv[1])
    def save(number, frame):
        (place / "asked").touch()
        while not (place / "let").exists():
            time.sleep(0.02)
        (place / "saved").touch()
        sys.exit(75)

    signal.signal(signal.SIGTERM, save)
    (place / "begun.txt").write_text("begun\\n")
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_lets_its_job_save(place, number):
    (place / "patient_job.py").write_text(textwrap.dedent(PATIENT), encoding="utf-8")
    (place / "worker.py").write_text(
        "from pathlib import Path\n"
        "from lattec_jax.runtime.cli import command\n"
        "from lattec_jax.runtime.preemption import terminating\n"
        "from lattec_jax.paper_tables.plan import Job\n"
        "from lattec_jax.paper_tables.runner import run_jobs\n"
        "place = Path.cwd()\n"
        "jobs = [Job(f'set/{n}', 'patient_job', (str(place),), place / str(n)) for n in range(2)]\n"
        "def main(argv):\n"
        "    with terminating():\n"
        "        run_jobs(jobs, place / 'sweep')\n"
        "command(main)\n",
        encoding="utf-8",
    )
    worker = start_worker(place)
    until(lambda: begun(place))
    worker.send_signal(number)
    until((place / "asked").exists)
    assert worker.poll() is None  # it waits for its job
    (place / "let").touch()
    worker.communicate(timeout=300)
    assert worker.returncode == (75 if number == signal.SIGTERM else 130)
    assert (place / "saved").exists()
    assert not (place / "sweep/logs/set--1.log").exists()  # no other job was begun


def test_a_failed_job_is_told_and_tried_again(place, capsys):
    job = Job("set/bad", "fake_job", (str(place / "bad"), "-1"), place / "bad")
    good = jobs_below(place, 1, 0)[0]
    outcome = run_jobs([job, good], place / "sweep")
    assert (outcome.failed, outcome.done) == (["set/bad"], ["set/0"])
    shown = capsys.readouterr().err
    assert "exit status 1" in shown and "no such luck" in shown and "set--bad.log" in shown
    assert "failed: set/bad" in summarize(outcome)
    assert run_jobs([job], place / "sweep").failed == ["set/bad"]
    assert begun(place).count("bad") == 2


def test_runs_wait_for_preparations_and_are_left_out_where_these_fail(place):
    mark = place / "prepared" / "labels"
    command = (str(place / "labels"), "0")
    ready = Job("set/labels", "lattec_jax.pseudo_label", command, mark)
    assert ready.is_preparation and " && touch " in ready.command
    # The real command refuses these arguments: what needs it is not begun.
    after = Job("set/run", "fake_job", (str(place / "run"), "0"), place / "run", ("set/labels",))
    other = jobs_below(place, 1, 0)[0]
    outcome = run_jobs([ready, after, other], place / "sweep")
    assert (outcome.failed, outcome.skipped) == (["set/labels"], ["set/run"])
    assert outcome.done == ["set/0"] and not mark.exists() and begun(place) == ["0"]


def test_a_place_that_cannot_be_written_is_named(place):
    (place / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out: cannot work in .*file"):
        run_jobs(jobs_below(place, 1, 0), place / "file")
