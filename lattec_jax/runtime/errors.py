"""Errors that the user can repair.

Every message says what was expected, what was found, where, and what to do. The commands print them
without a traceback, as they print errors of the system that name a file; any other exception is a
defect of ours and keeps its traceback.
"""

import difflib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Something in the user's input or files that the user can mend."""


class ConfigError(UserError):
    """A configuration file or override that cannot be used."""


class DataError(UserError):
    """Images, labels, class names, descriptions or pseudo-labels that cannot be used."""


class EngineError(UserError):
    """A captioning engine that lacks a package, model, device, memory or server."""


class TrainingError(UserError):
    """Training that went wrong, such as a loss that is not finite."""


class WeightsError(UserError):
    """A model checkpoint that cannot be used."""


def shortened(value: Any, most: int = 80) -> str:
    """A value for a message, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence with the nearest of `names`, or an empty string where none is near.

    Of the first 1,000 names of at most 200 characters: they may be a server's, and comparing takes
    time that grows with the square of the length.
    """
    compared = [n for n in itertools.islice(names, 1000) if len(n) <= 200]
    near = difflib.get_close_matches(name[:100], compared, n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A line for each key of `now` whose value in `before` is another; empty where none is."""
    return "".join(
        f"\n  {key}: there {shortened(before.get(key))}, here {shortened(value)}"
        for key, value in now.items()
        if before.get(key) != value
    )
