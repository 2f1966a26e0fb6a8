"""Unpack a folder of an archive that may be hostile.

Only regular files and folders are written. A path outside the archive's own tree, a link, a device,
a name that occurs twice, or a content much larger than the archive is an error, wherever in the
archive it is, and nothing of it remains.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from lattec_jax.data.downloads.sources import Archive
from lattec_jax.runtime.errors import DataError, short_repr
from lattec_jax.runtime.progress import progress_bar

_CHUNK = 2**20  # bytes
_MB = 1_000_000
_MAX_RATIO = 20  # of unpacked to packed bytes; images hardly shrink
_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    RuntimeError,  # of the module zipfile: the content is encrypted
)


class _Entry(NamedTuple):
    name: str
    kind: str  # "file", "folder", or what else it is
    content: IO[bytes] | None  # of a file
    position: int  # bytes of the archive up to here


def unpack(archive: Archive, path: Path, target: Path) -> None:
    """Write the content of `archive.folder`, in the archive at `path`, into the new folder
    `target`.

    Raises:
        DataError: the archive is damaged or hostile, or does not contain the folder.
    """
    folder = PurePosixPath(archive.folder)
    size, written = path.stat().st_size, 0
    limit = _MAX_RATIO * size + _CHUNK
    target.mkdir()
    try:
        with (
            contextlib.closing(_entries(archive, path)) as entries,
            progress_bar(desc=f"unpacking {path.name}", unit="MB", total=size // _MB) as bar,
        ):
            for entry in entries:
                bar.update(max(0, min(entry.position, size) // _MB - bar.n))
                inside = _checked_path(entry, path)
                if folder not in inside.parents:
                    continue
                place = target / inside.relative_to(folder)
                if entry.content is None:
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                with open(place, "xb") as output:
                    while chunk := entry.content.read(_CHUNK):
                        written += len(chunk)
                        if written > limit:
                            raise _refused(path, f"more than {limit:,} bytes of content")
                        output.write(chunk)
    except FileExistsError as error:
        raise _refused(path, f"{error.filename!r} twice") from error
    except _ERRORS as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a position outside the file; others are of the disk
            raise
        raise _damaged(path, error) from error
    if not written:
        raise DataError(
            f"{path} has no files in a folder {archive.folder}; delete it, and the same command "
            "downloads it again"
        )


def _entries(archive: Archive, path: Path) -> Generator[_Entry]:
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as content:
            yield from _tar_entries(content)
        return
    with zipfile.ZipFile(path) as content:
        if archive.inner:
            if archive.inner not in content.namelist():
                return
            with content.open(archive.inner) as inner:
                yield from _tar_entries(inner)
            return
        for info in content.infolist():
            mode = info.external_attr >> 16
            position = info.header_offset
            if info.is_dir():
                yield _Entry(info.filename, "folder", None, position)
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                yield _Entry(info.filename, "link or device", None, position)
            else:
                with content.open(info) as member:
                    yield _Entry(info.filename, "file", member, position)


def _tar_entries(content: IO[bytes]) -> Generator[_Entry]:
    # A stream: the archive is read once, to its very end, where the sum of its content is.
    with gzip.open(content) as plain:
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            for info in tar:
                if info.isdir():
                    yield _Entry(info.name, "folder", None, content.tell())
                elif info.isreg():
                    yield _Entry(info.name, "file", tar.extractfile(info), content.tell())
                else:
                    yield _Entry(info.name, "link or device", None, content.tell())
        while plain.read(_CHUNK):
            pass


def _checked_path(entry: _Entry, path: Path) -> PurePosixPath:
    inside = PurePosixPath(entry.name)
    if inside.is_absolute() or ".." in inside.parts or "\0" in entry.name or "\\" in entry.name:
        raise _refused(path, f"the path {short_repr(entry.name)}")
    if entry.kind not in ("file", "folder"):
        raise _refused(path, f"{short_repr(entry.name)}, which is a {entry.kind}")
    return inside


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged ({short_repr(str(error))}); delete it, and the same command downloads "
        "it again"
    )


def _refused(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} contains {what}; expected files and folders below its own tree. Nothing was "
        "unpacked. Do not use this archive; get it from the authors"
    )
