"""The log of a run: metrics as JSON lines, TensorBoard events, and a progress bar.

Images per second and device memory aside, the metrics of a continued run are equal, digit by digit,
to those of an uninterrupted one.

The events are written with TensorBoard's own writer. tensorboardX and clu are no replacement: the
former's `flush` does not wait for its queue (a kill after a checkpoint would lose events) and its
writer blocks forever on a full disk; the latter's needs TensorFlow.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.run_directory import METRICS
from lattec_jax.runtime.schemas import log_lines


class RunLog:
    """The log of one run in its work directory. Use as a context manager.

    What an interrupted run logged after the step `start`, from which it continues, is dropped, so
    that no step is logged twice.
    """

    def __init__(self, workdir: Path, start: int, steps: int, batch_size: int) -> None:
        self._path = workdir / METRICS
        _drop_after(self._path, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        # Makes TensorBoard drop the events that an interrupted run wrote after this step.
        self._add_event(start + 1, session_log=SessionLog(status=SessionLog.START))
        self._batch_size = batch_size
        self._closing = threading.Lock()  # `flush` may be running in another thread
        self._bar = tqdm(
            total=steps * batch_size,
            initial=start * batch_size,
            desc="training",
            unit="image",
            unit_scale=True,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        with self._closing:
            try:
                self._file.close()
            finally:
                self._events.close()

    def lines(self) -> list[dict[str, float | None]]:
        """Return all logged lines, also those from before an interruption."""
        return read_log(self._path.parent)

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self._bar.update(self._batch_size)

    def flush(self) -> None:
        """Wait until all metrics are on disk and all events are handed to the operating system.

        This can take long if the disk is busy. Any thread may call it, also after the log was
        closed: `CheckpointManager.save` calls it before a checkpoint is complete.
        """
        with self._closing:
            if not self._file.closed:
                self._events.flush()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step. They survive a kill of the process from then on."""
        metrics = {name: float(value) for name, value in metrics.items()}
        # JSON has no NaN and no infinity: they are written as null.
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._add_event(step, summary=Summary(value=values))
        if "loss" in metrics:
            self._bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)

    def _add_event(self, step: int, **content: Any) -> None:
        self._events.add_event(Event(step=step, wall_time=time.time(), **content))


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
