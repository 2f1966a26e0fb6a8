"""Signals that end a run. Imports no JAX.

SIGTERM, which schedulers send before they take a machine away, SIGUSR1, which Slurm sends on
request (`--signal=USR1@60`), and Ctrl-C. Before training they end the process at once, and behind
it as soon as the last checkpoint is complete: what lies on disk is whole. During training the step
under way ends and is saved first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

STATUS = os.EX_TEMPFAIL  # 75: the exit status of a process that can be started again
_TERMINATING = (signal.SIGTERM, signal.SIGUSR1)


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C asked the process to end."""


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Within it SIGTERM and SIGUSR1 raise Terminated, as Ctrl-C raises KeyboardInterrupt."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(signal.Signals(number).name)

    with _handled(end, _TERMINATING):
        yield


class PeerSignals(Protocol):
    """Agreement with the other processes of a run on whether a signal came to any of them."""

    def soon(self, mine: bool) -> bool:
        """Whether one came some steps ago; asked by all processes after each step."""

    def now(self, mine: bool) -> bool:
        """Whether one came by now."""


class PreemptionHandler:
    """Within it a signal is remembered, for the loop to look at after each step, and raised when
    the context is left. A second Ctrl-C does not wait.

    Args:
        others: the processes that end after the same step; None: this one is alone.
    """

    def __init__(self, peers: PeerSignals | None = None) -> None:
        self._others = peers
        self._found: signal.Signals | None = None

    def requested(self) -> bool:
        """Whether to end after this step. To be called once in each."""
        mine = self._found is not None
        return mine if self._others is None else self._others.soon(mine)

    def __enter__(self) -> PreemptionHandler:
        self._context = _handled(self._remember, (*_TERMINATING, signal.SIGINT))
        self._context.__enter__()
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        self._context.__exit__(None, None, None)
        if kind is not None:
            return
        theirs = self._others is not None and self._others.now(self._found is not None)
        if self._found is not None:
            kind = KeyboardInterrupt if self._found == signal.SIGINT else Terminated
            raise kind(f"{self._found.name}: the last step is saved")
        if theirs:
            raise Terminated("a signal to another process: the last step is saved")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._found == signal.SIGINT:
            raise KeyboardInterrupt("nothing of the last steps is saved")
        self._found = signal.Signals(number)
        print(f"{self._found.name}: ending after this step", file=sys.stderr)


@contextlib.contextmanager
def _handled(handler: object, signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Install a handler for a while; only the main thread can, others go without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
