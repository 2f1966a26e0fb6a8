"""All GPUs of a host by one command: one process per GPU, one shard per process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from captioning.shards import Shard, count_lines, shard_path
from lattec_jax.runtime.errors import EngineError

POLL_SECONDS = 1.0
LOG_TAIL = 2000  # bytes of a failed worker's log that are shown


def run(
    merged: Sequence[Path], argv: Sequence[str], shard: Shard, processes: int, wanted: int
) -> None:
    """Let `processes` workers describe `shard` together, and wait for all of them.

    Worker i sees the i-th of the GPUs that are visible here (several workers share one where there
    are fewer). What a worker prints goes to `descriptions/shards/worker-<i>-of-<n>.log`.

    Args:
        merged: the file of each kind; the shards beside it show the progress.
        argv: the command line, of which everything but --shard and --processes is passed on.
        shard: the part of the images that this host describes.
        processes: number of workers.
        wanted: descriptions that are missing.

    Raises:
        EngineError: a worker failed; the others went on to their end.
    """
    parts = shard.split(processes)
    files = [shard_path(path, part) for part in parts for path in merged]
    directory = files[0].parent
    directory.mkdir(parents=True, exist_ok=True)
    logs = [directory / f"worker-{part.index}-of-{part.count}.log" for part in parts]
    children = [
        _start(argv, part, log, _gpu(number))
        for number, (part, log) in enumerate(zip(parts, logs, strict=True))
    ]
    try:
        _wait(children, files, wanted)
    finally:
        # On an interrupt each child has had the signal as well; a kill of this process alone
        # leaves them to finish.
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            child.wait()
    failed = [i for i, child in enumerate(children) if child.returncode]
    if failed:
        log = logs[failed[0]]
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            tail = file.read().decode("utf-8", errors="replace").strip()
        raise EngineError(
            f"{len(failed)} of {processes} workers failed; what the others wrote is kept, and the "
            f"same command continues. The end of {log}:\n{tail}"
        )


def _start(argv: Sequence[str], part: Shard, log: Path, gpu: str | None) -> subprocess.Popen:
    environment = dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    arguments = [*_passed_on(argv[1:]), f"--shard={part.index}/{part.count}", "--processes=1"]
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "captioning.describe", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _passed_on(arguments: Sequence[str]) -> list[str]:
    """Without --shard and --processes, written `--name=value` or `--name value`."""
    kept, skip = [], False
    for argument in arguments:
        name, _, _ = argument.lstrip("-").partition("=")
        if skip:
            skip = False
        elif argument.startswith("-") and name in ("shard", "processes"):
            skip = "=" not in argument
        else:
            kept.append(argument)
    return kept


def _gpu(number: int) -> str | None:
    """The GPU of a worker as CUDA_VISIBLE_DEVICES wants it; None: there is nothing to choose."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # The driver's device files: asking CUDA would make a context in this process.
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
        visible = ",".join(map(str, range(count)))
    gpus = [gpu for gpu in visible.split(",") if gpu]
    return gpus[number % len(gpus)] if gpus else None


def _wait(children: Sequence[subprocess.Popen], files: Sequence[Path], wanted: int) -> None:
    """Until all have ended; shows how many descriptions they write."""
    before = count_lines(files)
    with tqdm(total=wanted, desc=f"{len(children)} workers", unit="description") as bar:
        while any(child.poll() is None for child in children):
            time.sleep(POLL_SECONDS)
            bar.update(count_lines(files) - before - bar.n)
