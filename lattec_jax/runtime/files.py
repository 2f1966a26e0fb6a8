"""Atomic writes: a file or directory is complete or absent. Imports no JAX.

Content is written under a temporary name in the same directory, `.NAME.TOKEN.partial`, which is
renamed when it is complete. The name cannot be predicted and is created exclusively, with the
permissions that the user's umask gives. The writer holds a lock on it, so that `remove_abandoned`
can tell what a killed process left behind from what is still being written. A directory is replaced
in one step, see `replace_directory`.
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
VISIBILITY_TIMEOUT_S = 60  # NFS clients cache for a while that a file is absent
# Without file locks, a temporary file that was not written to for so long counts as abandoned.
ABANDONED_AFTER_S = 24 * 3600
_LOCKS_UNSUPPORTED = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF))
_EXCHANGE_UNSUPPORTED = frozenset((errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS))


def wait_until_visible(path: Path) -> bool:
    """Wait for a file that another host wrote; return whether it is visible here."""
    end = time.monotonic() + VISIBILITY_TIMEOUT_S
    while not (visible := path.exists()) and time.monotonic() < end:
        time.sleep(1)
    return visible


def partial_path(path: Path, token: str) -> Path:
    """Return the temporary path beside `path` with a token of 16 hexadecimal digits."""
    return path.with_name(f".{_prefix(path.name)}.{token}{PARTIAL}")


def _prefix(name: str) -> str:
    return name[:100]  # with the token, the name must not exceed the maximal length of file names


def _create(path: Path, directory: bool) -> tuple[Path, int]:
    """Create a temporary file or directory beside `path`; return it and its locked descriptor."""
    while True:
        partial = partial_path(path, secrets.token_hex(8))
        flags = os.O_RDONLY | os.O_DIRECTORY
        if directory:
            partial.mkdir()
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with suppress(FileNotFoundError):  # removed as abandoned before it was locked
            descriptor = os.open(partial, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                # Blocks while `remove_abandoned` holds the lock, to inspect or delete it.
                lock(descriptor, fcntl.LOCK_EX)
            except (OSError, KeyboardInterrupt):
                os.close(descriptor)
                _delete(partial)
                raise
            if os.fstat(descriptor).st_nlink and partial.exists():
                return partial, descriptor
            os.close(descriptor)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def lock(descriptor: int, operation: int) -> OSError | None:
    """Lock an open file; return the error if its file system does not support locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise
        return error
    return None


@contextmanager
def partial_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; rename it to `path` at the end of the block.

    An exception in the block leaves `path` unchanged and deletes the temporary file.
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

    The block moves its result out of the directory; what remains is deleted at the end.
    """
    partial, descriptor = _create(path, directory=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def replace_directory(new: Path, target: Path) -> None:
    """Rename a directory to `target`. An existing directory is deleted or left at `new`.

    On Linux and most file systems, the two are exchanged in one step, so `target` always exists.
    Elsewhere the existing directory is renamed to `.NAME.TOKEN.old` first; if the process is killed
    at that moment, it stays there. An OSError leaves `target` unchanged.
    """
    while True:
        try:
            if not os.path.lexists(target):
                os.rename(new, target)
                return
        except OSError as error:  # another process has just created it
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        with suppress(FileNotFoundError):  # another process has just moved it: try again
            if not stat.S_ISDIR(target.lstat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
            if _exchange(new, target) or _move_over(new, target):
                return
        new.lstat()  # raises FileNotFoundError if `new` is the missing one


def _move_over(new: Path, target: Path) -> bool:
    """Replace a directory in two steps; return False if another process has just done so."""
    aside = target.with_name(f".{_prefix(target.name)}.{secrets.token_hex(8)}.old")
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
    """Exchange two paths in one step; return False if the system does not support it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):  # not Linux, or an older C library
        return False
    current, exchange = -100, ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2(current, os.fsencode(one), current, os.fsencode(other), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in _EXCHANGE_UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def remove_abandoned(directory: Path, name: str | None = None) -> list[Path]:
    """Delete what killed processes left in a directory, and return the paths.

    Deletes temporary names of this module (with `name`: only those of this file or directory) that
    no process has locked, and those of earlier versions that were not written to for a day. What
    cannot be deleted stays; it does no harm.
    """
    stem = r"\..+" if name is None else re.escape(f".{_prefix(name)}")
    pattern = re.compile(rf"{stem}\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
    removed = []
    with suppress(OSError):
        for partial in sorted(directory.iterdir()):
            with suppress(OSError):  # its writer has just finished, or another user owns it
                if pattern.fullmatch(partial.name):
                    gone = _remove_unlocked(partial)
                else:
                    gone = _is_of_earlier_version(partial, name) and _remove_old(partial)
                if gone:
                    removed.append(partial)
    return removed


def _is_of_earlier_version(path: Path, name: str | None) -> bool:
    """Return whether an earlier version could have written this temporary path."""
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
    """Delete a temporary path unless its writer is alive; return whether it was deleted."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):  # unsupported
            return _remove_old(partial)
        _delete(partial)  # under the lock: a writer waits for it and starts again
        return True
    finally:
        os.close(descriptor)


def _remove_old(partial: Path) -> bool:
    """Delete a temporary path that was not written to recently; return whether it was deleted."""
    last_write = max(path.lstat().st_mtime for path in (partial, *partial.rglob("*")))
    if time.time() - last_write <= ABANDONED_AFTER_S:
        return False
    _delete(partial)
    return True


def _delete(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or all of the new content.

    Temporary files that killed processes left for the same file are deleted.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    remove_abandoned(path.parent, path.name)
    with partial_file(path) as file:
        file.write(data)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically."""
    write_atomic(path, json.dumps(content, indent=2) + "\n")


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays to a .safetensors file with the permissions that the user's umask gives.

    The library creates files that only their owner can read, and reports an OSError, such as a full
    disk, as a SafetensorError, which has no attribute for the error number.
    """
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:
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
