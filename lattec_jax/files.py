"""Files that are whole or not there. Imports no JAX."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

PARTIAL = ".partial"  # suffix of what a killed process leaves behind
VISIBLE = 60  # seconds after which a file must be seen on all hosts; NFS remembers absent ones


def appears(path: Path) -> bool:
    """Whether a file that another host wrote can be seen here, at once or soon."""
    end = time.monotonic() + VISIBLE
    while not (seen := path.exists()) and time.monotonic() < end:
        time.sleep(1)
    return seen


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


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write JSON, all of it or nothing."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays, with the permissions that users expect: the library makes the file for its
    owner alone.

    Raises:
        OSError: such as a full disk, which the library reports as an error of its own.
    """
    try:
        safetensors.numpy.save_file(dict(tensors), path, metadata=metadata)
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error
    path.chmod(0o644)
