"""Errors of libraries written in Rust become user errors."""

from __future__ import annotations

import os

import pytest

from lattec_jax.runtime.errors import WeightsError
from lattec_jax.runtime.rust_errors import rust_errors


class PanicException(BaseException):
    """Stands for that of pyo3_runtime, which cannot be imported."""


def test_a_panic_is_a_user_error_and_its_output_is_dropped(capfd):
    match = "the file cannot be read: index out of bounds"
    with pytest.raises(WeightsError, match=match), rust_errors("the file"):
        os.write(2, b"thread '<unnamed>' panicked at src/lib.rs\n")
        raise PanicException("index out of bounds\nmore")
    assert capfd.readouterr().err == ""


def test_only_plain_exceptions_are_user_errors(capfd):
    with pytest.raises(WeightsError, match=r"\\x1b\[31m"), rust_errors("the file"):
        raise Exception("\x1b[31m bad")
    for error in (KeyboardInterrupt, WeightsError("mine"), TypeError):
        kind = error if isinstance(error, type) else WeightsError
        with pytest.raises(kind), rust_errors("the file"):
            raise error
    with rust_errors("the file"):
        os.write(2, b"kept")
    assert capfd.readouterr().err == "kept"


@pytest.mark.parametrize("note", ["", "note: run with `RUST_BACKTRACE=1` environment variable\n"])
def test_other_output_before_and_after_a_panic_is_passed_on(note, capfd):
    panic = f"thread '<unnamed>' (7) panicked at src/lib.rs:3:5:\nout of\nbounds\n{note}"
    with pytest.raises(WeightsError, match="out of"), rust_errors("the file"):
        os.write(2, f"before\n{panic}after\n".encode())
        raise PanicException("out of\nbounds")
    assert capfd.readouterr().err == "before\nafter\n"
    with pytest.raises(WeightsError), rust_errors("the file"):  # two panics, with other messages
        os.write(2, f"a\n{panic}b\n\n{panic}c\n".encode())
        raise PanicException("out of\nbounds" if not note else "other")
    assert capfd.readouterr().err.split() == ["a", "b", "c"]


def test_plain_errors_keep_what_was_written(capfd):
    with pytest.raises(WeightsError), rust_errors("the file"):
        os.write(2, b"a warning\n")
        raise Exception("damaged")
    assert capfd.readouterr().err == "a warning\n"
