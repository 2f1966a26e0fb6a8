"""The log of a run: metrics as JSON lines and for its trackers, and a progress bar.

Images per second and device memory aside, the metrics of a continued run are equal, digit by digit,
to those of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.progress import progress_bar
from lattec_jax.runtime.run_directory import METRICS
from lattec_jax.runtime.schemas import log_lines
from lattec_jax.training.trackers import open_trackers


class RunLog:
    """The log of one run in its work directory. Use as a context manager.

    What an interrupted run logged after the step `start`, from which it continues, is dropped, so
    that no step is logged twice.

    Args:
        trackers: names of those that get the same metrics (`lattec_jax.training.trackers`).
        config: of the run, as JSON values, for trackers that show it.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        trackers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = workdir / METRICS
        _drop_after(self._path, start)
        self._trackers = open_trackers(trackers, workdir, start, config or {})
        self._file = self._path.open("a", encoding="utf-8")
        self._closing = threading.Lock()  # `flush` may be running in another thread
        self._bar = progress_bar(desc="training", unit="step", total=steps, initial=start)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        self._bar.close()
        with self._closing, contextlib.ExitStack() as closing:
            for tracker in self._trackers:  # all of them, whatever one of them raises
                closing.callback(tracker.close, kind is not None)
            self._file.close()

    def lines(self) -> list[dict[str, float | None]]:
        """Return all logged lines, also those from before an interruption."""
        return read_log(self._path.parent)

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self._bar.update()

    def flush(self) -> None:
        """Wait until all metrics are on disk, and all trackers have handed theirs on.

        This can take long if the disk is busy. Any thread may call it, also after the log was
        closed: `CheckpointManager.save` calls it before a checkpoint is complete.
        """
        with self._closing:
            if not self._file.closed:
                for tracker in self._trackers:
                    tracker.flush()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step. They survive a kill of the process from then on."""
        metrics = {name: float(value) for name, value in metrics.items()}
        # JSON has no NaN and no infinity: they are written as null.
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, metrics)
        if "loss" in metrics:
            self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}", refresh=False)


class NoLog:
    """Replaces `RunLog` on processes that write no log: its methods do nothing."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *exc: object) -> None: ...
    def advance(self) -> None: ...
    def flush(self) -> None: ...
    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def lines(self) -> list[dict[str, float | None]]:
        return []


def read_log(workdir: Path) -> list[dict[str, float | None]]:
    """Return the lines of a log, or an empty list; raise DataError if one is damaged."""
    path = workdir / METRICS
    return [line for _, line in log_lines(path)] if path.exists() else []


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; also drop an incomplete last line."""
    if path.exists():
        kept = [
            line.rstrip(b"\r\n")
            for line, metrics in log_lines(path)
            if metrics["step"] is not None and metrics["step"] <= step
        ]
        write_atomic(path, b"".join(line + b"\n" for line in kept))
