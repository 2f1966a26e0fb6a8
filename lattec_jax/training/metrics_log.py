"""What a run writes while it goes on: metrics as JSON lines, TensorBoard events, a progress bar.

No line of the metrics holds a time: those of a run that was continued are equal, byte for byte, to
those of one that was not. Of the events only `wall_time` differs.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.run_directory import METRICS
from lattec_jax.runtime.schemas import log_lines


class RunLog:
    """The log of one run in its work directory. Use as a context manager.

    Args:
        workdir: of the run.
        start: the step that the run starts from; what an interrupted run wrote beyond it is
            dropped, so that no step is there twice.
        steps: of the whole run.
        batch_size: images per step, for the rate.
    """

    def __init__(self, workdir: Path, start: int, steps: int, batch_size: int):
        self._path = workdir / METRICS
        _drop_after(self._path, start)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        # TensorBoard then forgets what an interrupted run wrote beyond this step.
        begin = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(step=start + 1, wall_time=time.time(), session_log=begin))
        self._batch_size = batch_size
        self._closing = threading.Lock()
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
        """All that was logged, by interrupted sessions of the run as well."""
        return read_log(self._path.parent)

    def advance(self) -> None:
        """Count one step on the progress bar."""
        self._bar.update(self._batch_size)

    def flush(self) -> None:
        """Return when all metrics are on disk, and the system has all events. That can take long
        where much else is being written; any thread may do it, also behind the end of the log."""
        with self._closing:
            if not self._file.closed:
                self._events.flush()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step; the system has them when this returns."""
        metrics = {name: float(value) for name, value in metrics.items()}
        # JSON knows no NaN: a figure that is not finite is written as null.
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._events.add_event(
            Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        )
        if "loss" in metrics:
            self._bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)


class NoLog:
    """Stands in the place of a `RunLog` on processes that write none."""

    def __init__(self, workdir: Path, start: int, steps: int, batch_size: int):
        pass

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def advance(self) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def lines(self) -> list[dict[str, float | None]]:
        """None."""
        return []


def read_log(workdir: Path) -> list[dict[str, float | None]]:
    """The lines that a `RunLog` wrote, none where there is no log.

    Raises:
        DataError: a line is damaged.
    """
    path = workdir / METRICS
    return [line for _, line in log_lines(path)] if path.exists() else []


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a half-written last line goes as well."""
    if path.exists():
        kept = [line.rstrip(b"\r\n") for line, found in log_lines(path) if found["step"] <= step]
        write_atomic(path, b"".join(line + b"\n" for line in kept))
