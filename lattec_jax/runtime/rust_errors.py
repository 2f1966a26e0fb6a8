"""Errors of libraries that are written in Rust: `tokenizers`, `safetensors`. Imports no JAX."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.text import escape_unprintable, truncate


@contextmanager
def rust_errors(what: str, hold_stderr: bool = True) -> Iterator[None]:
    """Turn what such a library raises at a damaged file into WeightsError.

    `tokenizers` raises a plain Exception for what it cannot read. A panic of the Rust code is a
    BaseException, raised after a message on the standard error, which is dropped here; all that
    others wrote meanwhile is passed on.

    Args:
        what: what is read, for the message.
        hold_stderr: False for what may take long, or where other threads write to the standard
            error meanwhile.
    """
    with _held_stderr() if hold_stderr else _nothing_held() as drop:
        try:
            yield
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            drop(str(error))
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WeightsError(
                f"{what} cannot be read: {escape_unprintable(truncate(lines[0], 500))}"
            ) from None


@contextmanager
def _nothing_held() -> Iterator[Callable[[str], None]]:
    yield lambda _: None


@contextmanager
def _held_stderr() -> Iterator[Callable[[str], None]]:
    """Hold back what is written to the descriptor of the standard error.

    Yields what drops the lines of a panic, called with the panic's message.
    """
    try:
        sys.stderr.flush()
        real = os.dup(2)
    except (AttributeError, OSError, ValueError):  # it is closed
        yield lambda _: None
        return
    panics: list[str] = []
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield panics.append
        finally:
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            written = held.read()
            for message in panics:
                written = _without_panics(written, message)
            with suppress(OSError):
                os.write(2, written)


def _without_panics(written: bytes, message: str) -> bytes:
    """The text without "thread '…' panicked at …", the message, and the note on RUST_BACKTRACE.

    Rust writes the note at the first panic of a process only.
    """
    known = re.escape(message.encode(errors="replace"))
    return re.sub(
        rb"^\n?thread '[^\n]*panicked at [^\n]*\n"
        rb"(?:" + known + rb"\n|(?:(?!thread ')[^\n]*\n){0,50}?(?=note: run with `RUST_BACKTRACE))?"
        rb"(?:note: run with `RUST_BACKTRACE[^\n]*\n?)?",
        b"",
        written,
        flags=re.MULTILINE,
    )
