"""Run the jobs of a sweep one by one. Any number of workers may share one sweep.

A worker that receives SIGTERM, SIGUSR1 or Ctrl-C terminates its process and waits for it to end.

The worker and the process that it has started both hold the lock (flock) of a job. So a job whose
worker was killed is not started again while its process continues. The lock ends with both.
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
    """Names of the jobs by what happened to them."""

    done: list[str] = dataclasses.field(default_factory=list)  # by this worker
    done_before: list[str] = dataclasses.field(default_factory=list)  # before, or by other workers
    failed: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)  # a job that they need has failed


def run_jobs(jobs: Sequence[Job], out: Path) -> Outcome:
    """Run the jobs that are not done, in order, and wait for those that other workers run.

    Raises:
        ConfigError: `out`, for locks and logs, cannot be written, or its file system has no flock.
    """
    try:
        for folder in ("locks", "logs"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        return _Worker(jobs, out).run()
    except OSError as error:
        raise ConfigError(f"--out: cannot work in {out}: {error}") from error


class _Worker:
    """Passes over the jobs until none is left."""

    def __init__(self, jobs: Sequence[Job], out: Path) -> None:
        self._jobs, self._out = jobs, out
        self._outcome = Outcome()
        self._seconds: list[float] = []

    def run(self) -> Outcome:
        """Run or await all jobs."""
        left = list(self._jobs)
        while left:
            left = [job for job in left if not self._settle(job)]
            if left:
                _print(f"waiting for {len(left)} jobs of other workers, the first: {left[0].name}")
                while all(self._waits(job) for job in left):
                    time.sleep(_PAUSE)
        return self._outcome

    def _settle(self, job: Job) -> bool:
        """Run a job unless it is done or cannot run; False if another worker runs it."""
        outcome = self._outcome
        if job.done:
            outcome.done_before.append(job.name)
            return True
        if any(need in outcome.failed or need in outcome.skipped for need in job.needs):
            outcome.skipped.append(job.name)
            return True
        if self._lacks(job):
            return False  # another worker makes what it needs
        with self._lock(job) as lock:
            if lock is None:
                return False
            if job.done:  # by another worker, since we looked
                outcome.done_before.append(job.name)
                return True
            self._run(job, lock)
        return True

    def _run(self, job: Job, lock: int) -> None:
        """Run a job and print its outcome and the remaining time."""
        number = next(n for n, other in enumerate(self._jobs, 1) if other.name == job.name)
        _print(f"[{number}/{len(self._jobs)}] {job.name} ...")
        start = time.perf_counter()
        ended_well = _run(job, self._out / "logs" / f"{_file_name(job)}.log", lock)
        taken = time.perf_counter() - start
        (self._outcome.done if ended_well else self._outcome.failed).append(job.name)
        if ended_well and not job.is_preparation:
            self._seconds.append(taken)
        left = sum(not other.done for other in self._jobs)
        said = f"    {'done' if ended_well else 'FAILED'} in {taken:.0f} s; {left} left"
        if left and self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            said += f", {mean:.0f} s a run, {left * mean / 60:.0f} min to go"
        _print(said)

    def _lacks(self, job: Job) -> bool:
        """Whether a preparation that a job needs is not done yet."""
        over = {*self._outcome.failed, *self._outcome.skipped}
        needed = (other for other in self._jobs if other.name in job.needs)
        return any(not other.done and other.name not in over for other in needed)

    def _waits(self, job: Job) -> bool:
        """Whether a job must wait for another worker."""
        if job.done:
            return False
        if self._lacks(job):
            return True
        with self._lock(job) as lock:
            return lock is None

    @contextlib.contextmanager
    def _lock(self, job: Job) -> Iterator[int | None]:
        """Yield the descriptor of the job's locked file, None if another process holds the lock."""
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


def summarize(outcome: Outcome) -> str:
    """Return the numbers of jobs by outcome, and the names of those that failed or were skipped."""
    lines = [
        f"{len(outcome.done)} jobs done now, {len(outcome.done_before)} before or by other "
        f"workers, {len(outcome.failed)} failed, {len(outcome.skipped)} without what they need"
    ]
    lines += [f"  failed: {name}" for name in outcome.failed]
    lines += [f"  skipped: {name}" for name in outcome.skipped]
    return "\n".join(lines)


def _print(line: str) -> None:
    print_escaped(line, file=sys.stderr)


def _file_name(job: Job) -> str:
    return job.name.replace("/", "--")


def _run(job: Job, log: Path, lock: int) -> bool:
    """Run the job's process with its output in `log`; return whether it succeeded."""
    environment = os.environ.copy()
    # Runs of several rows and seeds compile to the same programs: compile each once.
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
                _print(f"    stopping {job.name}")
                process.terminate()
                process.wait()
                raise
    if status == 0 and job.is_preparation:
        job.product.parent.mkdir(parents=True, exist_ok=True)
        job.product.touch()
    if status == 0 and job.done:
        return True
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    _print(f"    exit status {status}; the end of {log}:")
    for line in [line for line in lines if line.strip()][-_LAST_LINES:]:
        _print(f"      {line}")
    return False
