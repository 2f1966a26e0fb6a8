"""Unpack a folder of an archive that may be hostile.

Only regular files and folders are written. A path outside the archive's own tree, a link or a
device is an error, wherever in the archive it is. So is a name that is written twice, and far more
content than the archive has bytes. Nothing of such an archive remains.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import lzma
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
    lzma.LZMAError,
)
# A name twice, a file that is a folder elsewhere, a name that is too long.
_NAMES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class _Entry(NamedTuple):
    name: str
    kind: str  # "file", "folder", or what else it is
    content: IO[bytes] | None  # of a file
    position: int  # bytes of the archive up to here


def unpack(archive: Archive, path: Path, target: Path) -> None:
    """Write `archive.folder` of the archive at `path` as `target/images`, and `archive.files` into
    `target/files`. The folder `target` is new.

    Raises:
        DataError: the archive is damaged or hostile, or lacks the folder or one of the files.
    """
    folder = PurePosixPath(archive.folder)
    files = {folder.parent / name: target / "files" / name for name in archive.files}
    size, written = path.stat().st_size, 0
    limit = _MAX_RATIO * size + _CHUNK
    (target / "images").mkdir(parents=True)
    (target / "files").mkdir()
    try:
        with (
            contextlib.closing(_entries(archive, path)) as entries,
            progress_bar(desc=f"unpacking {path.name}", unit="MB", total=size // _MB) as bar,
        ):
            for entry in entries:
                bar.update(max(0, min(entry.position, size) // _MB - bar.n))
                inside = _checked_path(entry, path)
                place = files.get(inside)
                if folder in inside.parents:
                    place = target / "images" / inside.relative_to(folder)
                if place is None:
                    continue
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
    except _ERRORS as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of a codec; a position outside the file
            raise _damaged(path, error) from error
        if error.errno in _NAMES:
            raise _refused(path, f"names that exclude each other ({error})") from error
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    missing = [name.name for name, place in files.items() if not place.is_file()]
    if not any((target / "images").iterdir()):
        missing.insert(0, f"{archive.folder}/")
    if missing:
        raise DataError(
            f"{path} has no {', '.join(missing)}; delete it, and the same command downloads it "
            "again"
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
