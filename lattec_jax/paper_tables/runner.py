"""Run the jobs of a sweep one by one. Any number of workers may share one sweep.

A worker that is told to end (SIGTERM, SIGUSR1, Ctrl-C) passes it on and waits for its process.

A job is locked (flock) by the worker and by the process that it has started, so that a job whose
worker was killed is not begun a second time while its process goes on. The lock ends with them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lattec_jax.paper_tables.plan import Job
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import print_escaped

_LAST_LINES = 6  # of a failed job's log that are shown
_PAUSE = 2.0  # seconds between looks at jobs that other workers have


@dataclasses.dataclass
class Outcome:
    """What became of the jobs, by name."""

    done: list[str] = dataclasses.field(default_factory=list)  # by this worker
    others: list[str] = dataclasses.field(default_factory=list)  # before, or by other workers
    failed: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)  # what they need has failed


def work(jobs: Sequence[Job], out: Path) -> Outcome:
    """Run what is not done, in order, and wait for what other workers have begun.

    Args:
        jobs: of `lattec_jax.paper_tables.plan.make_jobs`.
        out: directory of the sweep; locks and logs go below it.

    Raises:
        ConfigError: `out` cannot be written, or its file system has no flock.
    """
    try:
        for folder in ("locks", "logs"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        return _Worker(jobs, out).run()
    except OSError as error:
        raise ConfigError(f"--out: cannot work in {out}: {error}") from error


class _Worker:
    """One pass after the other over the jobs until none is left."""

    def __init__(self, jobs: Sequence[Job], out: Path) -> None:
        self._jobs, self._out = jobs, out
        self._outcome = Outcome()
        self._seconds: list[float] = []

    def run(self) -> Outcome:
        """What became of the jobs."""
        left = list(self._jobs)
        while left:
            left = [job for job in left if not self._settle(job)]
            if left:
                _say(f"waiting for {len(left)} jobs of other workers, the first: {left[0].name}")
                while all(self._waits(job) for job in left):
                    time.sleep(_PAUSE)
        return self._outcome

    def _settle(self, job: Job) -> bool:
        """Run a job, unless that is done, or not possible. False: another worker has it."""
        outcome = self._outcome
        if job.done:
            outcome.others.append(job.name)
            return True
        if any(need in outcome.failed or need in outcome.left_out for need in job.needs):
            outcome.left_out.append(job.name)
            return True
        if self._lacks(job):
            return False  # another worker makes what it needs
        with self._lock(job) as lock:
            if lock is None:
                return False
            if job.done:  # by another worker, since we looked
                outcome.others.append(job.name)
                return True
            self._run(job, lock)
        return True

    def _run(self, job: Job, lock: int) -> None:
        """Run a job and say how it went, and how much is left."""
        number = next(n for n, other in enumerate(self._jobs, 1) if other.name == job.name)
        _say(f"[{number}/{len(self._jobs)}] {job.name} ...")
        start = time.perf_counter()
        ended_well = _run(job, self._out / "logs" / f"{_file_name(job)}.log", lock)
        taken = time.perf_counter() - start
        (self._outcome.done if ended_well else self._outcome.failed).append(job.name)
        if ended_well and not job.prepares:
            self._seconds.append(taken)
        left = sum(not other.done for other in self._jobs)
        said = f"    {'done' if ended_well else 'FAILED'} in {taken:.0f} s; {left} left"
        if left and self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            said += f", {mean:.0f} s a run, {left * mean / 60:.0f} min to go"
        _say(said)

    def _lacks(self, job: Job) -> bool:
        """Whether something that a job needs is still to come."""
        over = {*self._outcome.failed, *self._outcome.left_out}
        needed = (other for other in self._jobs if other.name in job.needs)
        return any(not other.done and other.name not in over for other in needed)

    def _waits(self, job: Job) -> bool:
        """Whether there is nothing to do for a job yet."""
        if job.done:
            return False
        if self._lacks(job):
            return True
        with self._lock(job) as lock:
            return lock is None

    @contextlib.contextmanager
    def _lock(self, job: Job) -> Iterator[int | None]:
        """The descriptor of the job's locked file; None where another process has it."""
        path = self._out / "locks" / f"{_file_name(job)}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield descriptor
        finally:
            os.close(descriptor)


def report(outcome: Outcome) -> str:
    """One line of what `work` did, and the names of what is missing."""
    lines = [
        f"{len(outcome.done)} jobs done now, {len(outcome.others)} before or by other workers, "
        f"{len(outcome.failed)} failed, {len(outcome.left_out)} without what they need"
    ]
    lines += [f"  failed: {name}" for name in outcome.failed]
    lines += [f"  left out: {name}" for name in outcome.left_out]
    return "\n".join(lines)


def _say(line: str) -> None:
    print_escaped(line, file=sys.stderr)


def _file_name(job: Job) -> str:
    return job.name.replace("/", "--")


def _run(job: Job, log: Path, lock: int) -> bool:
    """Whether the job's process ended well and left its product; its output goes to `log`."""
    environment = os.environ.copy()
    # Rows and seeds share their programs: compile each once.
    cache = (log.parent.parent / "compiled").absolute()
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    with open(log, "ab") as file:
        command = [sys.executable, "-m", job.module, *job.arguments]
        file.write(f"$ {job.command}\n".encode())
        file.flush()
        with subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, pass_fds=(lock,)
        ) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:  # Ctrl-C or SIGTERM: it saves its work and ends
                _say(f"    stopping {job.name}")
                process.terminate()
                process.wait()
                raise
    if status == 0 and job.prepares:
        job.product.parent.mkdir(parents=True, exist_ok=True)
        job.product.touch()
    if status == 0 and job.done:
        return True
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    _say(f"    exit status {status}; the end of {log}:")
    for line in [line for line in lines if line.strip()][-_LAST_LINES:]:
        _say(f"      {line}")
    return False
