"""Errors of libraries that are written in Rust: `tokenizers`, `safetensors`. Imports no JAX."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lattec_jax.errors import WeightsError
from lattec_jax.text import cut, printable


@contextmanager
def rust_errors(what: str, hold_stderr: bool = True) -> Iterator[None]:
    """Turn what such a library raises at a damaged file into WeightsError.

    `tokenizers` raises a plain Exception for what it cannot read. A panic of the Rust code is a
    BaseException, raised after a message on the standard error, which is dropped here.

    Args:
        what: what is read, for the message.
        hold_stderr: False where other threads write to the standard error meanwhile.
    """
    with _held_stderr() if hold_stderr else _nothing_held() as drop:
        try:
            yield
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            drop()
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WeightsError(f"{what} cannot be read: {printable(cut(lines[0], 500))}") from None


@contextmanager
def _nothing_held() -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def _held_stderr() -> Iterator[Callable[[], None]]:
    """Hold back what is written to the descriptor of the standard error; yield what drops it."""
    try:
        sys.stderr.flush()
        real = os.dup(2)
    except (AttributeError, OSError, ValueError):  # it is closed
        yield lambda: None
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield lambda: os.ftruncate(held.fileno(), 0)
        finally:
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            with suppress(OSError):
                os.write(2, held.read())
