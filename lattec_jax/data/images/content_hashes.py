"""SHA-256 hashes of image files, which tell whether a description belongs to an image.

Files are read once: hashes are stored with the size and modification time of their files in
`<artifacts>/<dataset>/content.json`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.prefetch import prefetch
from lattec_jax.runtime import safe_read
from lattec_jax.runtime.config import artifacts_dir
from lattec_jax.runtime.files import write_atomic

THREADS = 16  # on a network disk they mostly wait
_MAX_BLOCK = 64  # files
UNREADABLE = ""  # replaces the hash of a file that cannot be read

Entry = list  # [size in bytes, modification time in ns, SHA-256]


def content_path(config: ConfigDict) -> Path:
    """Return the file with the hashes of the configured data set."""
    return artifacts_dir(config) / "content.json"


def content_hashes(paths: Sequence[str | os.PathLike[str]], cache: Path) -> list[str]:
    """Return the hexadecimal SHA-256 of each file, or `UNREADABLE`.

    Args:
        cache: JSON file with known hashes, updated here. A damaged one is replaced.
    """
    known = _read(cache)
    names = [os.path.abspath(path) for path in paths]
    # In blocks: handing a file to a thread takes as long as hashing a small one.
    size = max(1, min(_MAX_BLOCK, len(names) // (4 * THREADS)))
    blocks = (names[start : start + size] for start in range(0, len(names), size))

    def hash_block(block: list[str]) -> list[Entry | None]:
        return [_entry(name, known.get(name)) for name in block]

    found = list(itertools.chain.from_iterable(prefetch(hash_block, blocks, threads=THREADS)))
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
        if size > safe_read.MAX_FILE_BYTES:  # `open_image` refuses it too
            return None
        with safe_read.open_regular(name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]  # BinaryIO has `readinto`
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
    return {
        name: entry
        for name, entry in known.items()
        if isinstance(entry, list) and [type(value) for value in entry] == [int, int, str]
    }
