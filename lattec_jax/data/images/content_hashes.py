"""The content of image files, as SHA-256, so that a description belongs to what was described.

Files are read once: hashes are kept beside the size and time of the file they were taken of, in
`<artifacts>/<dataset>/content.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.config import artifacts_dir
from lattec_jax.runtime.files import write_atomic

READERS = 16  # threads: on a network disk the time goes into waiting
UNREADABLE = ""  # stands for the hash of a file that cannot be opened

Entry = list  # [size in bytes, time of the last change in ns, SHA-256]


def content_path(config: ConfigDict) -> Path:
    """Where the hashes of the configured data set are kept."""
    return artifacts_dir(config) / "content.json"


def content_hashes(paths: Sequence[str | os.PathLike[str]], cache: Path) -> list[str]:
    """The SHA-256 of each file in hexadecimal, `UNREADABLE` where it cannot be read.

    Args:
        paths: N image files.
        cache: JSON file of what is known; added to. One that is damaged is made again.
    """
    known = _read(cache)
    names = [os.path.abspath(path) for path in paths]
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda name: _entry(name, known.get(name)), names))
    new = {name: entry for name, entry in zip(names, found, strict=True) if entry}
    if any(known.get(name) != entry for name, entry in new.items()):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, json.dumps(known | new))
    return [entry[2] if entry else UNREADABLE for entry in found]


def _entry(name: str, known: Entry | None) -> Entry | None:
    try:
        status = os.stat(name)
        size, time = status.st_size, status.st_mtime_ns
        if known is not None and known[:2] == [size, time]:
            return known
        if size > safe_read.MAX_FILE_BYTES:  # `open_image` does not read it either
            return None
        with safe_read.open_regular(name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
    return [size, time, digest]


def _read(cache: Path) -> dict[str, Entry]:
    try:
        known = safe_read.read_json(cache, safe_read.MAX_FILE_BYTES)
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: entry for name, entry in known.items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and [type(value) for value in entry] == [int, int, str]
