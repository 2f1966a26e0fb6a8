"""Detect damaged checkpoints: SHA-256 checksums of their files, and Orbax's metadata file.

TensorStore's own checksums do not cover all files of a checkpoint.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.files import write_atomic

CHECKSUMS = "SHA256SUMS"  # the file name and format that `sha256sum -c` reads
# Orbax rewrites this file when it moves the checkpoint into place: it has no checksum.
_METADATA = "_CHECKPOINT_METADATA"


def write_checksums(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files into it."""
    lines = [f"{digest}  {name}\n" for name, digest in checksums(checkpoint).items()]
    write_atomic(checkpoint / CHECKSUMS, "".join(lines))


def checksums(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that are read from a checkpoint, by relative path."""
    found = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        name = path.relative_to(checkpoint).as_posix()
        if name not in (CHECKSUMS, _METADATA):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def damage(checkpoint: Path) -> str:
    """Describe how the files of a checkpoint are damaged; "" if they are not."""
    if reason := metadata_damage(checkpoint):
        return reason
    path = checkpoint / CHECKSUMS
    if not path.is_file():
        return f"it has no {CHECKSUMS}"
    try:
        *lines, end = safe_read.read_text(path).split("\n")
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return f"{CHECKSUMS} is damaged"
    if end:
        return f"{CHECKSUMS} is truncated"
    found = checksums(checkpoint)
    missing = sorted(expected.keys() - found.keys())
    changed = sorted(
        name for name in found.keys() & expected.keys() if found[name] != expected[name]
    )
    # Not listed because the list was truncated. At the top level Orbax adds files afterwards.
    unlisted = [name for name in found.keys() - expected.keys() if "/" in name]
    if missing or changed or unlisted:
        return f"{', '.join((missing + changed)[:3]) or CHECKSUMS} is not as it was written"
    return ""


def metadata_damage(checkpoint: Path) -> str:
    """Describe how Orbax's metadata file is damaged; "" if it is not, or is missing."""
    path = checkpoint / _METADATA
    if not path.exists():
        return ""
    try:
        metadata = safe_read.read_json(path)
    except (OSError, ValueError) as error:
        return f"{_METADATA} cannot be read: {error}"
    if not isinstance(metadata, dict) or "item_handlers" not in metadata:
        return f"{_METADATA} is not as it was written"
    # Another release of Orbax may write other keys: these are not checked.
    wrong = [k for k, is_valid in _VALID.items() if k in metadata and not is_valid(metadata[k])]
    return f"{_METADATA} is not as it was written: {', '.join(wrong)}" if wrong else ""


def _is_time(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**63)


# The values that Orbax writes for a run.
_VALID = {
    "item_handlers": lambda value: isinstance(value, dict) and value.keys() == {"state", "extra"},
    "metrics": lambda value: value == {},
    "performance_metrics": lambda value: value == {},
    "init_timestamp_nsecs": _is_time,
    "commit_timestamp_nsecs": _is_time,
    "custom_metadata": lambda value: value == {},
}
