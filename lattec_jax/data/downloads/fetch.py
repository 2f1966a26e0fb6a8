"""Download a public file: go on where an earlier download stopped, and check the content.

What is downloaded is `NAME.part`, complete or not. A file `NAME` is one that the user has put
there.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from lattec_jax.data.downloads.sources import RemoteFile
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.progress import progress_bar
from lattec_jax.runtime.text import print_escaped

_ATTEMPTS = 4  # without a new byte, before the download is given up
_WAIT_S = 2.0  # before the second attempt; twice as long before each further one
_TIMEOUT_S = 60  # without a byte from the server
_CHUNK = 2**20  # bytes
_MB = 1_000_000
_MAX_BYTES = 10**11  # of a file whose size nobody states


def part_path(file: RemoteFile, folder: Path) -> Path:
    """Return the path of a download that may be incomplete."""
    return folder / f"{file.name}.part"


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Return the path of a public file in a folder: the user's own copy, or what this downloads.

    One process at a time may download into a folder.

    Raises:
        DataError: the server cannot be reached, answers with an error or with something else, or
            keeps dropping the connection (what arrived is kept); the content has another sum (a
            download is then deleted); or the disk is too small.
    """
    own = folder / file.name
    if own.is_dir():
        raise DataError(f"{own} is a folder, but the file {file.url} belongs there; move it away")
    if own.exists():
        check(file, own, f"delete {own} to download it again")
        return own
    part = part_path(file, folder)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(part, flags, 0o666), "ab") as output:
        _receive(file, output, part)
        output.flush()
        os.fsync(output.fileno())
    try:
        check(file, part, "it was deleted; run the command again, or report the change")
    except DataError:
        part.unlink()
        raise
    return part


def _receive(file: RemoteFile, output: BinaryIO, part: Path) -> None:
    """Append what is missing, with further attempts after the connection was lost."""
    failures, most = 0, output.tell()
    while not (file.size and output.tell() == file.size):
        before = output.tell()
        try:
            _request(file, output, part)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                if error.headers.get("Content-Range") == f"bytes */{before}":
                    return  # complete already
                _start_again(output)
            elif error.code < 500 and error.code not in (408, 429):
                raise DataError(
                    f"{file.url} cannot be downloaded: the server answered {error.code} "
                    f"{error.reason}. {_by_hand(file, part)}"
                ) from error
            reason: Exception = error
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # of the disk, not of the network
            reason = error
        failures = 1 if output.tell() > most else failures + 1
        most = max(most, output.tell())
        if failures == _ATTEMPTS:
            raise DataError(
                f"{file.url} cannot be downloaded ({reason}); {output.tell():,} bytes are kept in "
                f"{part}, and the same command goes on from there. {_by_hand(file, part)}"
            ) from reason
        wait = _WAIT_S * 2 ** (failures - 1)
        print_escaped(f"{file.name}: {reason}; trying again in {wait:.0f} s", file=sys.stderr)
        time.sleep(wait)


def _by_hand(file: RemoteFile, part: Path) -> str:
    path = part.with_name(file.name)
    return f"Without a network here, download it on another machine and copy it to {path}"


def _request(file: RemoteFile, output: BinaryIO, part: Path) -> None:
    """Request what is missing and append it, until the server has sent all of it."""
    start = output.tell()
    headers = {"User-Agent": "lattec_jax", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(file.url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        begin, total = _sent_range(response)
        known = file.size or total
        # A login page instead of the file must not destroy what has arrived.
        other = file.size and total not in (None, file.size)
        if other or (total is not None and total < start):
            raise DataError(
                f"{file.url}: expected {file.size or start:,} bytes or more, the server has "
                f"{total:,}; is it another file, or a login page? {_by_hand(file, part)}"
            )
        if begin is None:  # the whole file
            begin = 0
            _start_again(output)
        elif begin != start:
            raise http.client.HTTPException(f"the server sent bytes from {begin}, not {start}")
        received = begin
        _check_space(file, part, received, known)
        with progress_bar(
            desc=f"downloading {file.name}",
            unit="MB",
            total=None if known is None else known // _MB,
            initial=received // _MB,
        ) as bar:
            while chunk := response.read(_CHUNK):
                if received + len(chunk) > (known or _MAX_BYTES):
                    raise DataError(
                        f"{file.url}: the server sends more than {known or _MAX_BYTES:,} bytes. "
                        f"{_by_hand(file, part)}"
                    )
                _write(output, chunk, part)
                received += len(chunk)
                bar.update(received // _MB - bar.n)
        if known is not None and received < known:
            raise http.client.HTTPException(
                f"the connection ended {known - received:,} bytes early"
            )


def _sent_range(response: Any) -> tuple[int | None, int | None]:
    """Return from which byte on the server sends (None: it ignored the question), and the size of
    the file if it states it."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)", given)
        if found is None:
            raise http.client.HTTPException(f"the server sent the range {given[:80]!r}")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    if response.status != http.HTTPStatus.OK:
        raise http.client.HTTPException(f"the server answered {response.status}")
    length = response.headers.get("Content-Length", "")
    return None, int(length) if re.fullmatch("[0-9]{1,15}", length) else None


def _start_again(output: BinaryIO) -> None:
    output.seek(0)
    output.truncate()


def _write(output: BinaryIO, chunk: bytes, part: Path) -> None:
    try:
        output.write(chunk)
    except OSError as error:  # it names no file, and would look like a lost connection
        raise OSError(error.errno, os.strerror(error.errno or 0), str(part)) from error


def _check_space(file: RemoteFile, part: Path, received: int, total: int | None) -> None:
    """Raise DataError unless the disk has space for the rest and for the unpacked images, which are
    about as large as the archive."""
    if total is None:
        return
    needed, free = 2 * total - received, shutil.disk_usage(part.parent).free
    if needed > free:
        raise DataError(
            f"{file.name} and its unpacked content need {needed / _MB:,.0f} MB more in "
            f"{part.parent}, where {free / _MB:,.0f} MB are free; make space, or set "
            "$LATTECLIP_DATA_DIR to a folder on another disk"
        )


def check(file: RemoteFile, path: Path, advice: str) -> None:
    """Raise DataError, which ends with this advice, if the content is not that of the source."""
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
            f"{found} ({path.stat().st_size:,} bytes); {advice}"
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
            done += len(chunk)
            bar.update(done // _MB - bar.n)
    return digest.hexdigest()
