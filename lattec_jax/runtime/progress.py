"""Progress of long loops: a bar on a terminal and in a notebook, elsewhere a line every 30 seconds.

Both are written to the standard error. The log of a Slurm job, of CI or of nohup stays readable. A
program can hide them.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import IO, Any, Protocol, Self, TypeVar

INTERVAL = 30.0  # seconds between lines

_hidden = ContextVar("progress is hidden", default=False)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ProgressBar(Protocol[T_co]):
    """What a bar of tqdm and `ProgressLines` have in common."""

    @property
    def n(self) -> float:
        """What is done, with what was done before."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> None: ...
    def __iter__(self) -> Iterator[T_co]: ...
    def update(self, n: float = 1) -> object:
        """Count `n` more as done."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Show this text too."""

    def write(self, s: str, file: IO[str] | None = None) -> None:
        """Print a message, above the bar if there is one."""

    def close(self) -> None:
        """End the bar."""


def progress_bar(
    iterable: Iterable[T] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    disable: bool = False,
    leave: bool = True,
) -> ProgressBar[T]:
    """Return the progress of a loop. The arguments are those of tqdm.

    Args:
        iterable: what to loop over; without it, call `update`.
        desc: what is being done.
        unit: what is counted, in the singular.
        total: how many there are; default: the length of `iterable`.
        initial: how many were done before.
        disable: show nothing.
        leave: keep the bar on the terminal at the end.
    """
    disable = disable or _hidden.get()
    if not (disable or sys.stderr.isatty() or _in_notebook()):
        return ProgressLines(iterable, desc, unit, total, initial)
    from tqdm.auto import tqdm  # slow to import

    return tqdm(
        iterable,
        desc=desc,
        unit=unit,
        total=total,
        initial=initial,
        disable=disable,
        leave=leave,
        mininterval=0.5,
    )


@contextlib.contextmanager
def hidden(hide: bool = True) -> Iterator[None]:
    """Show no progress, and print nothing on standard output. Warnings are shown."""
    if not hide:
        yield
        return
    token = _hidden.set(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _hidden.reset(token)


def _in_notebook() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return "IPKernelApp" in getattr(get_ipython(), "config", ())


class ProgressLines:
    """Prints what is done and what is left, at most every `INTERVAL` seconds.

    A loop shorter than `INTERVAL` prints nothing. Speed and time left are those since the line
    before. The time to the first update counts for neither: it may include a compilation.

    Args:
        clock: returns seconds.
        Otherwise see `progress_bar`.
    """

    def __init__(
        self,
        iterable: Iterable | None,
        desc: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._iterable = () if iterable is None else iterable
        self._desc, self._unit, self._clock = desc, unit, clock
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._postfix = ""
        self.n: float = initial
        self._start = self._last_time = clock()
        self._measured_from: tuple[float, float] | None = None  # time, and what was done then

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator:
        with self:
            for value in self._iterable:
                yield value
                self.update()

    def update(self, n: float = 1) -> None:
        """Count `n` more as done, and print a line if the last one is old."""
        self.n += n
        now = self._clock()
        before, self._measured_from = self._measured_from, self._measured_from or (now, self.n)
        if now - self._last_time >= INTERVAL:
            speed = f" after {duration(now - self._start)}"
            if before is not None:
                speed = f", {self._speed((self.n - before[1]) / (now - before[0]))}"
            self._print(f"{speed}{self._postfix}")
            self._last_time, self._measured_from = now, (now, self.n)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Add this text to the lines that follow."""
        self._postfix = f", {s}"

    def write(self, s: str, file: IO[str] | None = None) -> None:
        """Print a message."""
        print(s, file=file or sys.stdout, flush=True)

    def close(self) -> None:
        """Print how long it took, if lines were printed; once."""
        if self._last_time > self._start:
            self._print(f" in {duration(self._clock() - self._start)}")
            self._last_time = self._start

    def _print(self, rest: str) -> None:
        of_total = "" if self._total is None else f"/{self._total}"
        print(f"{self._desc}: {self.n}{of_total} {self._unit}s{rest}", file=sys.stderr, flush=True)

    def _speed(self, rate: float) -> str:
        """Return the speed and, if the total is known, the time left."""
        if rate == 0:
            return "no progress"
        digits = 0 if rate >= 10 else 1
        speed = f"{rate:,.{digits}f} {self._unit}s/s"
        if rate < 1:
            speed = f"{1 / rate:,.1f} s/{self._unit}"
        if self._total is None:
            return speed
        return f"{speed}, {duration((self._total - self.n) / rate)} left"


def duration(seconds: float) -> str:
    """Return a duration in words: "40 s", "9 min", "2 h 5 min"."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
