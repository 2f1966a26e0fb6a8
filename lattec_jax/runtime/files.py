"""Files and directories that are whole or not there. Imports no JAX.

Whatever is written goes to a temporary name in the same directory first, `.NAME.TOKEN.partial`,
and is moved into place when it is complete. The name cannot be predicted and is created
exclusively, with the permissions that the user's umask gives. The writer holds a lock on it, so
that `remove_abandoned` can tell what a killed process left behind from what is still being written.
A directory takes the place of another in one step, see `replace_directory`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

PARTIAL = ".partial"  # suffix of temporary names
VISIBLE = 60  # seconds after which a file must be seen on all hosts; NFS remembers absent ones
# Seconds without a write after which a temporary file has no living writer, where the file system
# has no locks.
ABANDONED = 24 * 3600
_NO_LOCKS = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF))
_NO_EXCHANGE = frozenset((errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS))


def wait_until_visible(path: Path) -> bool:
    """Whether a file that another host wrote can be seen here, at once or soon."""
    end = time.monotonic() + VISIBLE
    while not (seen := path.exists()) and time.monotonic() < end:
        time.sleep(1)
    return seen


def partial_path(path: Path, token: str) -> Path:
    """The temporary name beside `path` with these 16 hexadecimal digits."""
    return path.with_name(f".{_stem(path.name)}.{token}{PARTIAL}")


def _stem(name: str) -> str:
    # The beginning only: with the token it must not become longer than names may be.
    return name[:100]


def _create(path: Path, directory: bool) -> tuple[Path, int]:
    """Create a temporary file or directory beside `path`, and its locked descriptor."""
    while True:
        partial = partial_path(path, secrets.token_hex(8))
        flags = os.O_RDONLY | os.O_DIRECTORY
        if directory:
            partial.mkdir()
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with suppress(FileNotFoundError):  # the directory has been removed as abandoned
            descriptor = os.open(partial, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                # `remove_abandoned` may hold the lock, to look at it or to delete it: wait.
                _lock(descriptor, fcntl.LOCK_EX)
            except (OSError, KeyboardInterrupt):
                os.close(descriptor)
                _delete(partial)
                raise
            if os.fstat(descriptor).st_nlink and partial.exists():
                return partial, descriptor
            os.close(descriptor)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _lock(descriptor: int, operation: int) -> bool:
    """Lock an open file; False where its file system has no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


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


def replace_directory(new: Path, target: Path) -> None:
    """Move a directory to `target`. A directory that is there is deleted or left at `new`.

    On Linux the two are exchanged in one step, on most file systems: at every moment `target` is
    one of them. Elsewhere the older one is moved aside first, to `.NAME.TOKEN.old`; a process that
    is killed then leaves it there, and nothing deletes it.

    Raises:
        OSError: it cannot be moved; `target` is as before.
    """
    while True:
        try:
            if not os.path.lexists(target):
                os.rename(new, target)
                return
        except OSError as error:  # another process has just put one there
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        with suppress(FileNotFoundError):  # another process has just moved it away: again
            if not stat.S_ISDIR(target.lstat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
            if _exchange(new, target) or _move_over(new, target):
                return
        new.lstat()  # FileNotFoundError: it is the one that is missing


def _move_over(new: Path, target: Path) -> bool:
    """Replace a directory in two steps; False where another process has just done it."""
    aside = target.with_name(f".{_stem(target.name)}.{secrets.token_hex(8)}.old")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except (OSError, KeyboardInterrupt) as error:
        if not os.path.lexists(target):
            os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        if getattr(error, "errno", None) not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot do it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):  # another system, or a C library without it
        return False
    current, exchange = -100, ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(current, os.fsencode(one), current, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def remove_abandoned(directory: Path, name: str | None = None) -> list[Path]:
    """Delete what killed processes left in a directory, and return the paths.

    Only temporary names of this module are looked at, and only those that no process has locked;
    and names that earlier versions used, where nothing has been written for a day. What cannot be
    deleted stays: it harms nobody.

    Args:
        directory: need not exist.
        name: only what was to become this file or directory in it; None: all.
    """
    stem = r"\..+" if name is None else re.escape(f".{_stem(name)}")
    pattern = re.compile(rf"{stem}\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
    removed = []
    with suppress(OSError):
        for partial in sorted(directory.iterdir()):
            with suppress(OSError):  # its writer has just finished, or it is another user's
                if pattern.fullmatch(partial.name):
                    gone = _remove_unlocked(partial)
                else:
                    gone = _is_of_earlier_version(partial, name) and _remove_old(partial)
                if gone:
                    removed.append(partial)
    return removed


def _is_of_earlier_version(path: Path, name: str | None) -> bool:
    """Whether an earlier version could have written this temporary file or directory."""
    if name is None:
        patterns = {
            r".+\.(jsonl?|html)\.\d+\.partial": Path.is_file,
            r"hosts-\d+\.partial": Path.is_file,
            r"\.partial-[a-z0-9_]{8}": Path.is_dir,  # image caches
        }
    else:
        patterns = {
            rf"{re.escape(name)}\.\d+\.partial": Path.is_file,
            rf"{re.escape(name)}\.\d+\.tmp": Path.is_dir,
            rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}": Path.is_dir,  # checkpoints, exports
        }
    return not path.is_symlink() and any(
        re.fullmatch(pattern, path.name) and is_kind(path) for pattern, is_kind in patterns.items()
    )


def _remove_unlocked(partial: Path) -> bool:
    """Delete it unless its writer is alive; return whether it has been deleted."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return _remove_old(partial)
        _delete(partial)  # under the lock: its writer, if there is one, waits and begins again
        return True
    finally:
        os.close(descriptor)


def _remove_old(partial: Path) -> bool:
    """Delete it unless something has been written lately; return whether it has been deleted."""
    last_write = max(path.lstat().st_mtime for path in (partial, *partial.rglob("*")))
    if time.time() - last_write <= ABANDONED:
        return False
    _delete(partial)
    return True


def _delete(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file under another name, then move it into place: readers never see half of it.

    What killed processes left of the same file is deleted.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    remove_abandoned(path.parent, path.name)
    with partial_file(path) as file:
        file.write(data)


def write_json(path: Path, content: object) -> None:
    """Write JSON, all of it or nothing."""
    write_atomic(path, json.dumps(content, indent=2) + "\n")


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
