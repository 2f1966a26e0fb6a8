"""Read untrusted files: regular files only, of bounded size, line length and nesting.

Reading a FIFO could block forever and a device may be endless, so files are opened without blocking
and their type is checked on the open descriptor. What does not exist or cannot be read raises
OSError; content that is too large, in another encoding or malformed raises ValueError. Imports no
JAX.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

MAX_FILE_BYTES = 2**30  # of a file that is read at once: splits, lists, indices of image caches
MAX_JSON_BYTES = 2**26  # of JSON whose size does not depend on the number of images
MAX_LINE_BYTES = 2**20  # of a line in a JSON-lines, CSV or text file
MAX_DEPTH = 64  # of arrays and objects in JSON
_CHUNK_BYTES = 2**16


class NotRegularFile(OSError):
    """A path that is a directory, FIFO, socket or device."""

    def __str__(self) -> str:  # without the "[Errno None]" of OSError
        return f"{self.strerror}: {self.filename!r}"


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading in binary. Raise NotRegularFile for what is none, or a link to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegularFile(
            None, f"expected a regular file, found a {_file_type(mode)}", os.fspath(path)
        )
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def _file_type(mode: int) -> str:
    names = {
        stat.S_IFDIR: "directory",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    return names.get(stat.S_IFMT(mode), "special file")


def read_bytes(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a file of at most `max_bytes`."""
    content = bytearray()
    with open_regular(path) as file:
        # `read` allocates as much as it is asked for, so ask for the size of the file, not for the
        # bound. The size is only a hint: a file may grow, and those in /proc report 0.
        wanted = min(os.fstat(file.fileno()).st_size, max_bytes) + 1
        while part := file.read(wanted):
            if not content and len(part) < wanted:
                content = part  # the full content, without a copy
                break
            content += part
            if len(content) > max_bytes:
                raise ValueError(f"the file has more than {max_bytes:,} bytes")
            wanted = min(max_bytes + 1 - len(content), _CHUNK_BYTES)
    return bytes(content)


def read_text(
    path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES, encoding: str = "utf-8"
) -> str:
    """Return the content of a text file of at most `max_bytes`."""
    return read_bytes(path, max_bytes).decode(encoding)


def read_json(
    path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES, encoding: str = "utf-8"
) -> Any:
    """Return the content of a JSON file of at most `max_bytes`, as `parse_json` does."""
    return parse_json(read_text(path, max_bytes, encoding))


def parse_json(text: str | bytes) -> Any:
    """Like `json.loads`, for arrays and objects that are nested at most `MAX_DEPTH` deep."""
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    # Text with few brackets cannot be nested deeply; counting them is cheap compared to parsing.
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(content)
    return content


_TOO_DEEP = f"arrays and objects are nested more than {MAX_DEPTH} deep"


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return
        children = (item.values() if isinstance(item, dict) else item for item in containers)
        level = list(itertools.chain.from_iterable(children))
    raise ValueError(_TOO_DEEP)


def bounded_lines(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of a binary file, each of at most `max_bytes`, including line breaks."""
    for number, line in enumerate(iter(lambda: file.readline(max_bytes + 1), b""), 1):
        if len(line) > max_bytes:
            raise ValueError(f"line {number} has more than {max_bytes:,} bytes")
        yield line
