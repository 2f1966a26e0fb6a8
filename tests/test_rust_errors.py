from __future__ import annotations

import os

import pytest

from lattec_jax.errors import WeightsError
from lattec_jax.rust_errors import rust_errors


class PanicException(BaseException):
    """Named as that of pyo3_runtime, which cannot be imported."""


def test_a_panic_is_a_user_error_without_its_text(capfd):
    match = "the file cannot be read: index out of bounds"
    with pytest.raises(WeightsError, match=match), rust_errors("the file"):
        os.write(2, b"thread '<unnamed>' panicked at src/lib.rs\n")
        raise PanicException("index out of bounds\nmore")
    assert capfd.readouterr().err == ""


def test_plain_exceptions_are_user_errors_and_others_pass(capfd):
    with pytest.raises(WeightsError, match=r"\\x1b\[31m"), rust_errors("the file"):
        raise Exception("\x1b[31m bad")
    for error in (KeyboardInterrupt, WeightsError("mine"), TypeError):
        kind = error if isinstance(error, type) else WeightsError
        with pytest.raises(kind), rust_errors("the file"):
            raise error
    with rust_errors("the file"):
        os.write(2, b"kept")
    assert capfd.readouterr().err == "kept"
