"""Progress bars: those of tqdm, as widgets in a notebook. A program can hide them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import auto

_hidden = ContextVar("progress bars are hidden", default=False)


class tqdm(auto.tqdm):
    """A progress bar that is disabled within `hidden`."""

    def __init__(self, *args: Any, disable: bool | None = False, **settings: Any) -> None:
        super().__init__(*args, disable=disable or _hidden.get(), **settings)


@contextlib.contextmanager
def hidden(hide: bool = True) -> Iterator[None]:
    """Show no progress bars, and print nothing on standard output. Warnings are shown."""
    if not hide:
        yield
        return
    token = _hidden.set(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _hidden.reset(token)
