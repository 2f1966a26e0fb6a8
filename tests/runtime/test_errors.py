"""Hints in error messages take bounded time."""

from __future__ import annotations

import itertools

import pytest

from lattec_jax.runtime.errors import did_you_mean


@pytest.mark.parametrize(
    "names, hint",
    [
        (["dog", "cats"], "Did you mean 'cats'?"),
        (["dog"], ""),
        ([], ""),
        (["x"] * 999 + ["cats"], "Did you mean 'cats'?"),
        (["x"] * 1000 + ["cats"], ""),
        ((f"x{number}" for number in itertools.count()), ""),
    ],
)
def test_only_the_first_names_are_compared(names, hint):
    assert did_you_mean("cat", names) == hint


def test_long_names_are_not_compared():
    assert did_you_mean("a" * 150, ["a" * 201]) == ""
    assert did_you_mean("a" * 150, ["a" * 120]) == f"Did you mean {'a' * 120!r}?"
