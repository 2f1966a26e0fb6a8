"""Errors that the user can repair.

Every message states what was expected, what was found, where, and what to do. The commands print
these errors, and an OSError that names a file, without a traceback. Any other exception is a bug
and keeps its traceback.
"""

import difflib
import itertools
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something in the user's input or files that the user can repair."""


class ConfigError(UserError):
    """A configuration file or override that cannot be used."""


class DataError(UserError):
    """Images, labels, class names, descriptions or pseudo-labels that cannot be used."""


class EngineError(UserError):
    """A captioning engine that lacks a package, model, device, memory or server."""


class TrainingError(UserError):
    """Training that cannot continue, for example because the loss is not finite."""


class WeightsError(UserError):
    """A model checkpoint that cannot be used."""


def short_repr(value: Any, max_chars: int = 80) -> str:
    """Return the repr of a value for a message, truncated to `max_chars` characters.

    Only the beginning of a large value is looked at, so any content of a file can be passed.
    """
    limits = reprlib.Repr()
    limits.maxlevel = 3
    limits.maxstring = limits.maxother = limits.maxlong = max_chars
    limits.maxtuple = limits.maxlist = limits.maxdict = max_chars // 2
    text = limits.repr(value)
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def did_you_mean(name: str, names: Iterable[str], folder: Path | None = None) -> str:
    """Return a sentence with the closest of `names`, or an empty string if none is close.

    `folder`: the names are of files in it; the sentence has the path.

    Compares only the first 1,000 names of at most 200 characters: the names may come from a server,
    and the time grows with the square of their length.
    """
    compared = [n for n in itertools.islice(names, 1000) if len(n) <= 200]
    near = difflib.get_close_matches(name[:100], compared, n=1)
    if not near:
        return ""
    return f"Did you mean {str(folder / near[0]) if folder else near[0]!r}?"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a line for each key of `now` whose value differs from `before`."""
    return "".join(
        f"\n  {key}: was {short_repr(before.get(key))}, is now {short_repr(value)}"
        for key, value in now.items()
        if before.get(key) != value
    )
