"""Run the jobs of a sweep one by one. Any number of workers may share one sweep.

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

from lattec_jax.errors import ConfigError
from lattec_jax.files import write_whole
from lattec_jax.sweep.plan import Job

_LAST_LINES = 6  # of a failed job's log that are shown


@dataclasses.dataclass
class Outcome:
    """What became of the jobs, by name."""

    done: list[str] = dataclasses.field(default_factory=list)  # by this worker
    before: list[str] = dataclasses.field(default_factory=list)  # already done
    failed: list[str] = dataclasses.field(default_factory=list)
    waiting: list[str] = dataclasses.field(default_factory=list)  # what they need has failed
    elsewhere: list[str] = dataclasses.field(default_factory=list)  # another worker has them


def work(jobs: Sequence[Job], out: Path) -> Outcome:
    """Run what is not done, in order.

    Args:
        jobs: of `lattec_jax.sweep.plan.make_jobs`.
        out: directory of the sweep; locks and logs go below it.

    Raises:
        ConfigError: `out` cannot be written.
    """
    for folder in ("locks", "logs"):
        try:
            (out / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out: cannot write {out / folder}: {error.strerror}") from error
    outcome = Outcome()
    seconds: list[float] = []
    for number, job in enumerate(jobs, 1):
        if job.done:
            outcome.before.append(job.name)
            continue
        if any(need in outcome.failed or need in outcome.waiting for need in job.needs):
            outcome.waiting.append(job.name)
            continue
        # Runs need the preparations, so these are waited for where another worker has them.
        with _lock(out / "locks" / _file_name(job, "lock"), wait=job.prepares) as lock:
            if lock is None:
                outcome.elsewhere.append(job.name)
                continue
            if job.done:  # by another worker, since we looked
                outcome.before.append(job.name)
                continue
            start = time.perf_counter()
            _say(f"[{number}/{len(jobs)}] {job.name} ...")
            ended_well = _run(job, out / "logs" / _file_name(job, "log"), lock)
        taken = time.perf_counter() - start
        (outcome.done if ended_well else outcome.failed).append(job.name)
        if ended_well and not job.prepares:
            seconds.append(taken)
        left = sum(not later.done for later in jobs[number:])
        _say(f"    {'done' if ended_well else 'FAILED'} in {taken:.0f} s{_left(left, seconds)}")
    return outcome


def report(outcome: Outcome) -> str:
    """One line of what `work` did, and the names of what is missing."""
    lines = [
        f"{len(outcome.done)} jobs done now, {len(outcome.before)} before, "
        f"{len(outcome.failed)} failed, {len(outcome.waiting)} without what they need, "
        f"{len(outcome.elsewhere)} at other workers"
    ]
    for what in ("failed", "waiting", "elsewhere"):
        lines += [f"  {what}: {name}" for name in getattr(outcome, what)]
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _left(count: int, seconds: Sequence[float]) -> str:
    if not count or not seconds:
        return f"; {count} left"
    minutes = count * sum(seconds) / len(seconds) / 60
    return f"; {count} left, {sum(seconds) / len(seconds):.0f} s a run, {minutes:.0f} min to go"


def _file_name(job: Job, suffix: str) -> str:
    return f"{job.name.replace('/', '--')}.{suffix}"


@contextlib.contextmanager
def _lock(path: Path, wait: bool) -> Iterator[int | None]:
    """The descriptor of the locked file; None where another process has it and `wait` is off."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


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
        status = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, pass_fds=(lock,)
        ).returncode
    if status == 0 and job.prepares:
        job.product.parent.mkdir(parents=True, exist_ok=True)
        write_whole(job.product, "")
    if status == 0 and job.done:
        return True
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    _say(f"    exit status {status}; the end of {log}:")
    for line in [line for line in lines if line.strip()][-_LAST_LINES:]:
        _say(f"      {line}")
    return False
