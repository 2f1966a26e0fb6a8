"""Validation of JSON content against a schema."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval

from lattec_jax.runtime.errors import DataError, WeightsError
from lattec_jax.runtime.validation import STRICT, validate


@dataclasses.dataclass(frozen=True)
class Inner:
    __pydantic_config__ = STRICT
    count: Annotated[int, Interval(ge=1, le=9)]
    size: tuple[int, int] = (1, 1)
    pool: Literal["tok", "avg"] = "tok"


@dataclasses.dataclass(frozen=True)
class Outer:
    __pydantic_config__ = STRICT
    inner: Inner
    rate: float = 0.5
    names: list[str] = dataclasses.field(default_factory=list)


def test_valid_content_becomes_the_declared_type():
    content = {"inner": {"count": 3, "size": [4, 5], "pool": "avg"}, "rate": 1, "names": ["ä"]}
    expected = Outer(Inner(3, (4, 5), "avg"), 1.0, ["ä"])
    assert validate(Outer, content, "FILE", WeightsError) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "inner is missing"),
        ([], "content: expected an object, found []"),
        ({"inner": {"count": "3"}}, "inner.count: expected a valid integer, found '3'"),
        ({"inner": {"count": True}}, "inner.count: expected a valid integer, found True"),
        ({"inner": {"count": 3.0}}, "inner.count: expected a valid integer, found 3.0"),
        ({"inner": {"count": 10**12}}, "expected less than or equal to 9, found 1000000000000"),
        ({"inner": {"count": 1, "pool": "x"}}, "inner.pool: expected 'tok' or 'avg', found 'x'"),
        ({"inner": {"count": 1, "size": [1, "a"]}}, "inner.size[1]: expected a valid integer"),
        ({"inner": {"count": 1}, "rate": float("nan")}, "rate: expected a finite number"),
        ({"inner": {"count": 1}, "rate": 10**400}, "rate: expected a finite number"),
        ({"inner": {"count": 1}, "\x1b[31m": 1}, r"\x1b[31m is not known"),
        ({"inner": {"count": 1}, "names": ["\ud83d"]}, "half of a surrogate pair"),
    ],
)
def test_messages_name_location_expected_and_found(content: Any, message: str):
    with pytest.raises(DataError) as caught:
        validate(Outer, content, "FILE", DataError, "repair it")
    assert str(caught.value).startswith("FILE: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; repair it")


def test_messages_are_short_and_printable():
    content = {"inner": {"count": "\x1b]0;" + "x" * 10**6}, "names": list(range(1000))}
    with pytest.raises(DataError) as caught:
        validate(Outer, content, "FILE", DataError, "repair it")
    message = str(caught.value)
    assert len(message) < 1000 and message.isprintable()
    assert message.endswith("and 996 more; repair it")


def test_pydantic_is_imported_only_at_the_first_validation():
    code = "import sys, lattec_jax.runtime.validation; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
