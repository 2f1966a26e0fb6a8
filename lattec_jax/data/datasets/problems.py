"""All that is wrong with the files of a data set, for one message."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lattec_jax.runtime.errors import DataError

LISTED = 10  # items that a message names


@contextlib.contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Keep a DataError of what is done inside as one more problem."""
    try:
        yield
    except DataError as error:
        problems.append(str(error))


def listing(items: Sequence[str], indent: str) -> str:
    """The first items, a line each, and the number of the others."""
    listed = "".join(f"\n{indent}{item}" for item in items[:LISTED])
    more = f"\n{indent}and {len(items) - LISTED:,} more" if len(items) > LISTED else ""
    return listed + more


def forbidden(path: Path) -> Path | None:
    """The first folder on the way to `path`, itself included, that may not be looked into."""
    for folder in (*reversed(path.parents), path):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return folder
    return None
