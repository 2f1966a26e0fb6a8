"""Files and directories that are whole or not there. Imports no JAX.

Whatever is written goes to a temporary name in the same directory first, `.NAME.TOKEN.partial`,
and is moved into place when it is complete. The name cannot be predicted and is created
exclusively, with the permissions that the user's umask gives. The writer holds a lock on it, so
that `remove_abandoned` can tell what a killed process left behind from what is still being written.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from lattec_jax import safe_read

PARTIAL = ".partial"  # suffix of temporary names
VISIBLE = 60  # seconds after which a file must be seen on all hosts; NFS remembers absent ones
# Seconds without a write after which a temporary file has no living writer, where the file system
# has no locks.
ABANDONED = 24 * 3600


def appears(path: Path) -> bool:
    """Whether a file that another host wrote can be seen here, at once or soon."""
    end = time.monotonic() + VISIBLE
    while not (seen := path.exists()) and time.monotonic() < end:
        time.sleep(1)
    return seen


def temporary(path: Path, token: str) -> Path:
    """The temporary name beside `path` with these 16 hexadecimal digits."""
    return path.with_name(f".{_stem(path.name)}.{token}{PARTIAL}")


def _stem(name: str) -> str:
    # The beginning only: with the token it must not become longer than names may be.
    return name[:100]


def _create(path: Path, directory: bool) -> tuple[Path, int]:
    """Create a temporary file or directory beside `path`, and its locked descriptor."""
    while True:
        partial = temporary(path, secrets.token_hex(8))
        flags = os.O_RDONLY | os.O_DIRECTORY
        if directory:
            partial.mkdir()
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with suppress(FileNotFoundError):  # the directory has been removed as abandoned
            descriptor = os.open(partial, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between creation and lock, `remove_abandoned` may have deleted it.
            if os.fstat(descriptor).st_nlink and partial.exists():
                return partial, descriptor
            os.close(descriptor)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


@contextmanager
def partial_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; move it to `path` at the end of the block.

    An exception in the block leaves `path` as it was and nothing beside it.

    Raises:
        OSError: it cannot be written.
    """
    partial, descriptor = _create(path, directory=False)
    try:
        with os.fdopen(descriptor, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def partial_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`, which need not exist.

    The block moves what it has made out of it; the rest is deleted at the end.

    Raises:
        OSError: it cannot be created.
    """
    partial, descriptor = _create(path, directory=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(directory: Path, name: str | None = None) -> list[Path]:
    """Delete what killed processes left in a directory, and return the paths.

    Only temporary names of this module are looked at, and only those that no process has locked.
    What cannot be deleted stays: it harms nobody.

    Args:
        directory: need not exist.
        name: only what was to become this file or directory in it; None: all.
    """
    stem = r"\..+" if name is None else re.escape(f".{_stem(name)}")
    pattern = re.compile(rf"{stem}\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
    removed = []
    with suppress(OSError):
        for partial in sorted(directory.iterdir()):
            if pattern.fullmatch(partial.name):
                with suppress(OSError):  # its writer has just finished, or it is another user's
                    if _is_abandoned(partial):
                        _delete(partial)
                        removed.append(partial)
    return removed


def _is_abandoned(partial: Path) -> bool:
    descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return time.time() - _last_write(partial) > ABANDONED
    finally:
        os.close(descriptor)
    return True


def _last_write(partial: Path) -> float:
    return max(path.lstat().st_mtime for path in (partial, *partial.rglob("*")))


def _delete(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name, then move it into place: readers never see half of it.

    What killed processes left of the same file is deleted.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    remove_abandoned(path.parent, path.name)
    with partial_file(path) as file:
        file.write(data)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError and OSError as `safe_read.read_json` does."""
    return safe_read.read_json(path)


def write_json(path: Path, content: object) -> None:
    """Write JSON, all of it or nothing."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays, with the permissions that the user's umask gives: the library makes the file
    for its owner alone.

    Raises:
        OSError: such as a full disk, which the library reports as an error of its own.
    """
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:  # with the permissions that the umask gives
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        safetensors.numpy.save_file(dict(tensors), path, metadata=metadata)
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error
    path.chmod(mode)
