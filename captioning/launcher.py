"""Start one `captioning.describe` process per GPU of this host, each with a separate shard."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from captioning.shards import Shard, count_lines, shard_path
from lattec_jax.runtime.errors import EngineError
from lattec_jax.runtime.progress import progress_bar

POLL_SECONDS = 1.0
LOG_TAIL = 2000  # bytes of a failed worker's log that are shown


def launch_workers(
    merged_paths: Sequence[Path],
    argv: Sequence[str],
    shard: Shard,
    processes: int,
    num_pending: int,
) -> None:
    """Let `processes` workers describe `shard`, and wait for all of them.

    Worker i uses the i-th visible GPU (if there are fewer GPUs, several workers share one). Its
    output goes to `descriptions/shards/worker-<i>-of-<n>.log`.

    Args:
        merged_paths: the merged file of each kind; the shards beside it show the progress.
        argv: the command line, which each worker gets with its own --shard.
        num_pending: number of missing descriptions.
    """
    parts = shard.split(processes)
    files = [shard_path(path, part) for part in parts for path in merged_paths]
    directory = files[0].parent
    directory.mkdir(parents=True, exist_ok=True)
    logs = [directory / f"worker-{part.index}-of-{part.count}.log" for part in parts]
    workers = [
        _start(argv, part, log, _visible_gpu(number))
        for number, (part, log) in enumerate(zip(parts, logs, strict=True))
    ]
    before = count_lines(files)
    try:
        with progress_bar(
            total=num_pending, desc=f"{processes} workers", unit="description"
        ) as bar:
            while any(worker.poll() is None for worker in workers):
                time.sleep(POLL_SECONDS)
                bar.update(count_lines(files) - before - bar.n)
    finally:
        # On Ctrl-C the workers have received the signal as well. If only this process is killed,
        # they run to their end.
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            worker.wait()
    failed = [i for i, worker in enumerate(workers) if worker.returncode]
    if failed:
        log = logs[failed[0]]
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            tail = file.read().decode("utf-8", errors="replace").strip()
        raise EngineError(
            f"{len(failed)} of {processes} workers failed; all descriptions so far are stored, and "
            f"the same command continues. The end of {log}:\n{tail}"
        )


def _start(argv: Sequence[str], part: Shard, log: Path, gpu: str | None) -> subprocess.Popen:
    environment = dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    # Of a flag that is given twice, the last value counts.
    flags = [*argv[1:], f"--shard={part.index}/{part.count}", "--processes=1"]
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "captioning.describe", *flags],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _visible_gpu(worker: int) -> str | None:
    """Return a worker's value of CUDA_VISIBLE_DEVICES, or None if there is no GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # Counted by the driver's device files: CUDA would create a context in this process.
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
        visible = ",".join(map(str, range(count)))
    gpus = [gpu for gpu in visible.split(",") if gpu]
    return gpus[worker % len(gpus)] if gpus else None
