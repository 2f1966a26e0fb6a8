"""Experiment trackers that get the metrics of a run: TensorBoard, Weights & Biases.

`config.trackers` names them. Each gets the metrics of `metrics.jsonl`, at the same steps. To add
one, write a class with the methods of `Tracker` and its line in `TRACKERS`, and add its name to
`lattec_jax/runtime/config_schema.py`.

TensorBoard's events are written with its own writer. tensorboardX and clu are no replacement: the
former's `flush` does not wait for its queue (a kill after a checkpoint would lose events) and its
writer blocks forever on a full disk; the latter's needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.extras import install_command
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.safe_read import read_text

WANDB_ID = "wandb_id"  # file of a run directory


class Tracker(Protocol):
    """Receives the metrics of one run."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        ...

    def flush(self) -> None:
        """Wait until everything is handed to the operating system or to another process."""
        ...

    def close(self, failed: bool) -> None:
        """End the session; `failed`: by an exception, so that the run will be continued."""
        ...


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, workdir: Path, start: int, config: Mapping[str, Any]) -> None:
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        # Makes TensorBoard drop the events that an interrupted run wrote after this step.
        self._add(start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an event with the metrics as scalars."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._add(step, summary=Summary(value=values))

    def flush(self) -> None:
        """Write all events. This can take long if the disk is busy."""
        self._events.flush()

    def close(self, failed: bool) -> None:
        """Close the event file."""
        self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        self._events.add_event(Event(step=step, wall_time=time.time(), **content))


class WeightsAndBiases:
    """A run of Weights & Biases. Settings such as WANDB_PROJECT and WANDB_MODE apply.

    The file `RUN/wandb_id` has the id of the run, which a continued run reuses. Steps that an
    interrupted run has already sent are not accepted twice; their metrics are the same.
    """

    def __init__(self, workdir: Path, start: int, config: Mapping[str, Any]) -> None:
        """Start or continue the run.

        Raises:
            ConfigError: it cannot be started, for example without a login.
        """
        wandb = importlib.import_module("wandb")  # only with the extra of this name
        try:
            self._run = wandb.init(
                dir=workdir,
                id=_wandb_id(workdir),
                resume="allow",
                reinit="create_new",  # beside a run that the caller's program may have
                name=workdir.resolve().name,
                config=dict(config),
            )
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"config.trackers: Weights & Biases cannot start a run: {error}. Log in with "
                "`wandb login`, set WANDB_MODE=offline, or leave wandb out"
            ) from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics."""
        # Committed at once: a killed process must not leave the row of a saved step open.
        self._run.log(dict(metrics), step=step, commit=True)

    def flush(self) -> None:
        """Do nothing: the library's own process has the metrics already."""

    def close(self, failed: bool) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(failed))


def _wandb_id(workdir: Path) -> str:
    """Return the id in the run directory; make it if there is none."""
    path, found = workdir / WANDB_ID, ""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = read_text(path).strip()
    if not re.fullmatch(r"[\w-]{1,64}", found):
        found = secrets.token_hex(4)
        write_atomic(path, f"{found}\n")
    return found


TRACKERS: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError if the package of a tracker is missing."""
    # The library makes folders `wandb`, which are found as packages without origin.
    if "wandb" in names and getattr(find_spec("wandb"), "origin", None) is None:
        raise ConfigError(
            "config.trackers: the tracker wandb needs the package wandb; install it with "
            f"{install_command('wandb')}"
        )


def open_trackers(
    names: Sequence[str], workdir: Path, start: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """Return the trackers of a run that starts or continues after step `start`."""
    return [TRACKERS[name](workdir, start, config) for name in names]
