"""Errors of libraries written in Rust: `tokenizers` and `safetensors`. Imports no JAX."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.text import escape_unprintable, truncate


@contextmanager
def rust_errors(what: str, hold_stderr: bool = True) -> Iterator[None]:
    """Raise WeightsError for what a Rust library raises when it reads a damaged file.

    Neither case has a type that can be imported: `tokenizers` raises a plain Exception for content
    that it cannot read, and a panic raises `pyo3_runtime.PanicException`, a BaseException that
    exists only in the extension module. A panic also prints a message to the standard error, which
    is dropped here; other output is passed on.

    Args:
        what: what is read, for the message.
        hold_stderr: False if the block may take long, or if other threads write to the standard
            error at the same time.
    """
    with _held_stderr() if hold_stderr else nullcontext([]) as panics:
        try:
            yield
        except BaseException as error:
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            panics.append(str(error))
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WeightsError(
                f"{what} cannot be read: {escape_unprintable(truncate(lines[0], 500))}"
            ) from None


@contextmanager
def _held_stderr() -> Iterator[list[str]]:
    """Hold back what is written to the standard error until the end of the block.

    Yields a list; the output of a panic whose message is appended to it is dropped.
    """
    panics: list[str] = []
    try:
        sys.stderr.flush()
        real = os.dup(2)
    except (AttributeError, OSError, ValueError):  # it is closed
        yield panics
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield panics
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
    """Return the output without the text of panics with this message.

    That is: "thread '…' panicked at …", the message and, at the first panic of a process, a note on
    RUST_BACKTRACE.
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
