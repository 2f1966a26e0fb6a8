"""Files that are whole or not there. Imports no JAX."""

from __future__ import annotations

import json
import os
from pathlib import Path

PARTIAL = ".partial"  # suffix of what a killed process leaves behind


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name, then move it into place: readers never see half of it."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON, all of it or nothing."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
