"""Kinds of configuration values: what a value may be, and how a message describes it.

`lattec_jax.runtime.config_schema` gives each key one of these. Imports no JAX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

MAX_TEXT_CHARS = 10_000  # of a template or prompt
MAX_NAME_BYTES = 150  # of a name that becomes part of a folder's or file's name
MAX_PATH_BYTES = 4096  # PATH_MAX of Linux


class Allowed(NamedTuple):
    """The values that a key may have."""

    description: str  # follows "expected" in a message
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    secret: bool = False  # a value may hold a password, so messages never show it


def integer(low: int, high: int) -> Allowed:
    """Integers, the bounds included."""
    return Allowed(
        f"a whole number from {low} to {high}",
        lambda value: _is_integer(value) and low <= value <= high,
    )


def zero_or(meaning: str, low: int, high: int) -> Allowed:
    """0 with a special meaning, or integers with the bounds included."""
    return Allowed(
        f"0 ({meaning}) or a whole number from {low} to {high}",
        lambda value: _is_integer(value) and (value == 0 or low <= value <= high),
    )


def number(low: float, high: float) -> Allowed:
    """Finite numbers, the bounds included."""
    return Allowed(
        f"a number from {low:g} to {high:g}",
        lambda value: is_number(value) and low <= value <= high,
    )


def number_below(low: float, high: float) -> Allowed:
    """Finite numbers, the upper bound excluded."""
    return Allowed(
        f"a number of at least {low:g} and below {high:g}",
        lambda value: is_number(value) and low <= value < high,
    )


def number_above(low: float, high: float) -> Allowed:
    """Finite numbers, the lower bound excluded."""
    return Allowed(
        f"a number above {low:g} and at most {high:g}",
        lambda value: is_number(value) and low < value <= high,
    )


def choice(*values: str) -> Allowed:
    """One of several strings."""
    return Allowed(
        f"one of {', '.join(values)}",
        lambda value: isinstance(value, str) and value in values,
        values,
    )


def text(max_chars: int = MAX_TEXT_CHARS) -> Allowed:
    """Text for people or models, possibly empty: valid Unicode, one or more lines."""
    return Allowed(
        f"text of at most {max_chars} characters, without control characters",
        lambda value: (
            isinstance(value, str)
            and len(value) <= max_chars
            and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", value)
        ),
    )


def folder_name(pattern: str, characters: str, note: str = "") -> Allowed:
    """A name that becomes part of a folder's or file's name."""
    return Allowed(
        f"a name of {characters}, of at most {MAX_NAME_BYTES} bytes{note}",
        lambda value: _fits(value, MAX_NAME_BYTES) and bool(re.fullmatch(pattern, value)),
    )


def optional(allowed: Allowed) -> Allowed:
    """None, or a value that `allowed` accepts."""
    comma = "," if " or " in allowed.description else " or"
    return Allowed(
        f"None{comma} {allowed.description}",
        lambda value: value is None or allowed.accepts(value),
    )


def auto_or(allowed: Allowed) -> Allowed:
    """The string "auto", or a value that `allowed` accepts."""
    return Allowed(
        f"'auto' or {allowed.description}",
        lambda value: value == "auto" or allowed.accepts(value),
        ("auto",),
    )


def ordered_pair(high: float) -> Allowed:
    """Two numbers above 0, the smaller one first."""
    return Allowed(
        f"two numbers above 0 and at most {high:g}, the smaller one first",
        lambda values: are_numbers(values, 2) and 0 < values[0] <= values[1] <= high,
    )


def is_sequence(values: Any, accepts: Callable[[Any], bool], max_count: int) -> bool:
    """Whether `values` is a list or tuple of 1 to `max_count` accepted values."""
    return (
        isinstance(values, (tuple, list))
        and 0 < len(values) <= max_count
        and all(map(accepts, values))
    )


def is_number(value: Any) -> bool:
    """Whether a value is an int or a finite float, and not a bool."""
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_integer(value) and abs(value) < 2**1000  # a larger int does not fit into a float


def are_numbers(values: Any, count: int) -> bool:
    """Whether `values` is a list or tuple of `count` numbers."""
    return is_sequence(values, is_number, count) and len(values) == count


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: Any, max_bytes: int) -> bool:
    """Whether a value is a string without NUL; `os.fsdecode` may have made surrogates of bytes."""
    if not isinstance(value, str) or "\0" in value or len(value) > max_bytes:
        return False
    return len(value.encode("utf-8", "surrogatepass")) <= max_bytes


def _is_web_address(value: Any) -> bool:
    if not _fits(value, MAX_PATH_BYTES) or not value.isascii() or not value.isprintable():
        return False
    if re.search(r"[@?#%\s]", value):  # "%40" is an "@" too
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False


FLAG = Allowed("True or False", lambda value: isinstance(value, bool))
# A path, an address or another name for a program, possibly empty.
STRING = Allowed(
    f"a string of at most {MAX_PATH_BYTES} bytes, without NUL",
    lambda value: _fits(value, MAX_PATH_BYTES),
)
WEB_ADDRESS = Allowed(
    "an address such as http://localhost:8000/v1, in ASCII, without user name, password and query "
    "(the key is taken from the environment)",
    _is_web_address,
    secret=True,
)
