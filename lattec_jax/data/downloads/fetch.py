"""Download a public file: go on where an earlier download stopped, and check the content.

A file that is not complete is `NAME.part`. It becomes `NAME` when its sum is that of the source.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lattec_jax.data.downloads.sources import RemoteFile
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import lock
from lattec_jax.runtime.progress import progress_bar

_ATTEMPTS = 5  # without a new byte, before the download is given up
_WAIT_S = 2.0  # before the second attempt; twice as long before each further one
_TIMEOUT_S = 60  # without a byte from the server
_CHUNK = 2**20  # bytes
_MB = 1_000_000


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Download a file into a folder, unless it is there, and return its path.

    Raises:
        DataError: the server cannot be reached, answers with an error or keeps dropping the
            connection (what arrived is kept), the content has another sum (it is deleted), the disk
            is too small, or another process is downloading the file.
    """
    path = folder / file.name
    if path.is_file():
        _check(file, path, remedy=f"delete {path} to download it again")
        return path
    part = folder / f"{file.name}.part"
    with _open_locked(part) as output:
        _receive(file, output)
        output.flush()
        os.fsync(output.fileno())
        try:
            _check(file, part, remedy="it was deleted; run the command again, or report the change")
        except DataError:
            part.unlink()
            raise
        os.replace(part, path)
    return path


@contextlib.contextmanager
def _open_locked(part: Path) -> Iterator[BinaryIO]:
    """Open a file to append to it, which no other process does meanwhile."""
    with open(part, "ab") as output:
        try:
            lock(output.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process is downloading {part}; wait for it, then run this command again"
            ) from error
        yield output


def _receive(file: RemoteFile, output: BinaryIO) -> None:
    """Append what is missing, with further attempts after the connection was lost."""
    failures = 0
    while True:
        before = output.tell()
        try:
            _request(file, output)
            return
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                if error.headers.get("Content-Range") == f"bytes */{before}":
                    return  # complete already
                _start_again(output)
            elif error.code < 500 and error.code not in (408, 429):
                raise DataError(
                    f"{file.url} cannot be downloaded: the server answered {error.code} "
                    f"{error.reason}. {_by_hand(file, output)}"
                ) from error
            reason: Exception = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # of the disk, not of the network
            reason = error
        failures = 1 if output.tell() > before else failures + 1
        if failures == _ATTEMPTS:
            raise DataError(
                f"{file.url} cannot be downloaded ({reason}); {output.tell():,} bytes are kept in "
                f"{output.name}, and the same command goes on from there. {_by_hand(file, output)}"
            ) from reason
        time.sleep(_WAIT_S * 2 ** (failures - 1))


def _by_hand(file: RemoteFile, output: BinaryIO) -> str:
    path = str(output.name).removesuffix(".part")
    return f"Without a network here, download it on another machine and copy it to {path}"


def _request(file: RemoteFile, output: BinaryIO) -> None:
    """Request what is missing and append it, until the server has sent all of it."""
    start = output.tell()
    headers = {"User-Agent": "lattec_jax", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(file.url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        if start and not _continues(response, start):
            start = 0
            _start_again(output)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else file.size or None
        _check_space(file, output, (total or 0) - start)
        with progress_bar(
            desc=f"downloading {file.name}",
            unit="MB",
            total=None if total is None else total // _MB,
            initial=start // _MB,
        ) as bar:
            received = start
            while chunk := response.read(_CHUNK):
                _write(output, chunk)
                bar.update((received + len(chunk)) // _MB - received // _MB)
                received += len(chunk)
        if total is not None and received < total:
            raise http.client.IncompleteRead(b"", total - received)


def _continues(response: Any, start: int) -> bool:
    """Return whether the server sends the rest from this byte on, not the whole file."""
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and response.headers.get(
        "Content-Range", ""
    ).startswith(f"bytes {start}-")


def _start_again(output: BinaryIO) -> None:
    output.seek(0)
    output.truncate()


def _write(output: BinaryIO, chunk: bytes) -> None:
    try:
        output.write(chunk)
    except OSError as error:  # it names no file, and would look like a lost connection
        raise OSError(error.errno, os.strerror(error.errno or 0), str(output.name)) from error


def _check_space(file: RemoteFile, output: BinaryIO, missing: int) -> None:
    """Raise DataError unless the disk has space for the rest and for the unpacked images, which are
    about as large as the archive."""
    folder = Path(output.name).parent
    needed, free = missing + output.tell() + missing, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{file.name} and its images need {needed / 1e9:,.1f} GB more in {folder}, where "
            f"{free / 1e9:,.1f} GB are free; make space, or set $LATTECLIP_DATA_DIR to a folder on "
            "another disk"
        )


def _check(file: RemoteFile, path: Path, remedy: str) -> None:
    """Raise DataError if the content is not that of the source."""
    if file.md5:
        expected, found = file.md5, _digest(path, hashlib.md5(usedforsecurity=False))
        what = "MD5 sum"
    elif file.git_blob:
        prefix = f"blob {path.stat().st_size}\0".encode()
        expected = file.git_blob
        found = _digest(path, hashlib.sha1(prefix, usedforsecurity=False))
        what = "Git blob name"
    else:
        return
    if found != expected:
        raise DataError(
            f"{path} is not the file that {file.url} had: expected the {what} {expected}, found "
            f"{found} ({path.stat().st_size:,} bytes); {remedy}"
        )


def _digest(path: Path, digest: Any) -> str:
    size = path.stat().st_size
    with (
        open(path, "rb") as content,
        progress_bar(desc=f"checking {path.name}", unit="MB", total=size // _MB) as bar,
    ):
        done = 0
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            bar.update((done + len(chunk)) // _MB - done // _MB)
            done += len(chunk)
    return digest.hexdigest()
