"""Preemption: signals that end a run. Imports no JAX.

These are SIGTERM, which schedulers send before they stop a machine, SIGUSR1, which Slurm sends on
request (`--signal=USR1@60`), and Ctrl-C. During training, the current step is finished and saved
first. Before training, the process ends immediately; afterwards, as soon as the last checkpoint is
complete. In every case the files on disk are complete.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

EXIT_PREEMPTED = os.EX_TEMPFAIL  # exit status 75: the same command continues the run
_TERMINATING = (signal.SIGTERM, signal.SIGUSR1)


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C requested the end of the process."""


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Make SIGTERM and SIGUSR1 raise Terminated, as Ctrl-C raises KeyboardInterrupt."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(signal.Signals(number).name)

    with _handled(end, _TERMINATING):
        yield


class PeerSignals(Protocol):
    """Agreement of all processes of a run on whether any of them received a signal.

    `lattec_jax.runtime.distributed.SignalAgreement` implements it.
    """

    def any_process_delayed(self, mine: bool) -> bool:
        """Return whether any process had received a signal a few steps ago. Called after each
        step."""
        ...

    def any_process_now(self, mine: bool) -> bool:
        """Return whether any process has received a signal by now; waits for all processes."""
        ...


class PreemptionHandler:
    """Context manager that records a signal, for the training loop to ask for after each step, and
    raises it when the context is left. A second Ctrl-C raises immediately.

    `peers` makes all processes end after the same step; None for a single process.
    """

    def __init__(self, peers: PeerSignals | None = None) -> None:
        self._peers = peers
        self._received: signal.Signals | None = None

    def requested(self) -> bool:
        """Return whether to end after this step. Must be called exactly once per step."""
        mine = self._received is not None
        return mine if self._peers is None else self._peers.any_process_delayed(mine)

    def __enter__(self) -> PreemptionHandler:
        self._context = _handled(self._remember, (*_TERMINATING, signal.SIGINT))
        self._context.__enter__()
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        self._context.__exit__(None, None, None)
        if kind is not None:
            return
        any_peer = self._peers is not None and self._peers.any_process_now(
            self._received is not None
        )
        if self._received is not None:
            kind = KeyboardInterrupt if self._received == signal.SIGINT else Terminated
            raise kind(f"{self._received.name}: the last step is saved")
        if any_peer:
            raise Terminated("a signal to another process: the last step is saved")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt("nothing of the last steps is saved")
        self._received = signal.Signals(number)
        print(f"{self._received.name}: saving after the current step, then ending", file=sys.stderr)


@contextlib.contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None], signals: tuple[signal.Signals, ...]
) -> Iterator[None]:
    """Install a signal handler in the context. Does nothing in other threads than the main one,
    where Python does not allow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
