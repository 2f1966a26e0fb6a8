"""Warnings and parts of error messages about the files of a data set."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lattec_jax.runtime.errors import DataError

log = logging.getLogger(__name__)
MAX_LISTED = 10  # items listed in a message


@contextlib.contextmanager
def collect_errors(problems: list[str]) -> Iterator[None]:
    """Append the message of a DataError raised inside to `problems`, and continue."""
    try:
        yield
    except DataError as error:
        problems.append(str(error))


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning that this process has not logged yet: a command may read a data set twice."""
    log.warning("%s", text)


def list_lines(items: Sequence[str], indent: str) -> str:
    """Return the first items, one per line, and the number of further ones."""
    listed = "".join(f"\n{indent}{item}" for item in items[:MAX_LISTED])
    more = f"\n{indent}and {len(items) - MAX_LISTED:,} more" if len(items) > MAX_LISTED else ""
    return listed + more


def list_inline(items: Sequence[str]) -> str:
    """Return the first items, separated by commas, and the number of further ones."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more


def inaccessible_folder(path: Path) -> Path | None:
    """Return the first folder on the way to `path`, or `path` itself, without permission."""
    for folder in (*reversed(path.parents), path):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return folder
    return None
