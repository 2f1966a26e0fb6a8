"""Prediction files: a table, JSON lines or CSV; the latter two can be continued. Imports no JAX.

If the process is killed while it writes a line, the next run drops the incomplete last line and
continues. FILE.settings.json contains the settings of FILE, so that a file never mixes predictions
of two models.
"""

from __future__ import annotations

import codecs
import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lattec_jax.runtime.errors import ConfigError, DataError, differences
from lattec_jax.runtime.files import write_json
from lattec_jax.runtime.safe_read import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    bounded_lines,
    open_regular,
    parse_json,
)

FORMATS = ("table", "jsonl", "csv")


def header(kind: str, top: int) -> bytes:
    """Return what precedes the first prediction."""
    if kind != "csv":
        return b""
    more = [f"{field}_{k}" for k in range(2, top + 1) for field in ("class", "label", "score")]
    return _csv_row(["image", "class", "label", "score", *more, "error"])


def line(
    kind: str,
    image: str,
    classes: Sequence[str],
    labels: Sequence[int],
    scores: Sequence[float],
    error: str | None,
    top: int,
    width: int,
) -> bytes:
    """Format the prediction for one image as a line.

    Args:
        kind: one of `FORMATS`. A table has no line for an unreadable image.
        image: its path. If it is not UTF-8, JSON contains the result of Python's `os.fsdecode`,
            escaped, and CSV the bytes themselves.
        classes, labels, scores: of the k best classes; empty for an unreadable image.
        error: why the image cannot be read.
        top: k.
        width: of the names in a table.
    """
    best_classes = list(zip(classes, labels, scores, strict=True))
    if kind == "csv":
        cells = [cell for of_class in best_classes for cell in of_class] or [""] * (3 * top)
        return _csv_row([image, *cells, error or ""])
    if kind == "jsonl":
        if error is not None:
            return _json({"image": image, "error": error})
        best = [{"class": name, "score": score} for name, _, score in best_classes]
        return _json({"image": image, **best[0], "label": labels[0], "top": best})
    if error is not None:
        return b""
    shown = "  ".join(f"{name:{width}} {score:6.1%}" for name, _, score in best_classes)
    return f"{shown}  {printable(image)}\n".encode()


def printable(name: str) -> str:
    """Escape control characters and bytes that are not UTF-8 in a file name."""
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return escaped.encode("utf-8", "backslashreplace").decode()


def _json(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(content).encode() + b"\n"


def _csv_row(cells: Sequence[Any]) -> bytes:
    row = io.StringIO()
    csv.writer(row).writerow(cells)
    return row.getvalue().encode("utf-8", "surrogateescape")


class PredictionFile:
    """A file to append predictions to. Opening it drops an incomplete last line."""

    def __init__(self, path: Path, kind: str, top: int, settings: Mapping[str, Any]) -> None:
        """Open and lock the file, "jsonl" or "csv", with `top` classes per line. The settings are
        all that predictions depend on; JSON values.

        Raises:
            ConfigError: the file has other settings, or none.
            DataError: it cannot be written, is in use, or contains other lines.
        """
        self.path, self._kind, self._top = path, kind, top
        self._claim({"format": kind, "top": top, **settings})
        try:
            # Unbuffered, so that closing does not try to write again what could not be written.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from error
        self.done: set[str] = set()  # images that have a line already
        self.failed = 0  # number of these lines that are errors
        try:
            self._lock()
            self._resume()
        except DataError:
            self._file.close()
            raise
        except (OSError, ValueError) as error:
            self._file.close()
            raise DataError(f"{path} cannot be continued: {error}; choose another --out") from error

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Compare the settings with those of the file, or write them for a new file."""
        beside = self.path.with_name(self.path.name + ".settings.json")
        if not self.path.exists():
            try:
                write_json(beside, settings)
            except OSError as error:
                raise DataError(f"cannot write {beside}: {error.strerror}") from error
            return
        from lattec_jax.runtime import schemas

        advice = (
            f"{self.path} exists, and this file must contain its settings; choose another --out"
        )
        before = schemas.read(beside, schemas.PredictionSettings, ConfigError, advice)
        if listed := differences(before, settings):
            raise ConfigError(
                f"{self.path} was made with other settings; choose another --out, or delete it and "
                f"{beside.name}. What differs:{listed}"
            )

    def _lock(self) -> None:
        """Lock the file until it is closed or the process ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{self.path} is being written by another process; wait for it"
            ) from error
        except OSError:  # a file system without locks
            return

    def _resume(self) -> None:
        """Read what is done, drop an incomplete last line, and write a missing header."""
        first = header(self._kind, self._top)
        length = 0  # of the complete lines, in bytes
        for number, record in enumerate(_records(self.path, self._kind), 1):
            length += len(record)
            if number == 1 and first:
                if record != first:
                    raise self._foreign(number, record)
                continue
            image, error = self._parse(number, record)
            self.done.add(image)
            self.failed += bool(error)
        self._file.truncate(length)
        if length == 0:
            self.append(first)

    def _parse(self, number: int, record: bytes) -> tuple[str, str | None]:
        try:
            if self._kind == "jsonl":
                content = parse_json(record)
                image, error = content["image"], content.get("error")
                if isinstance(image, str) and isinstance(error, str | None):
                    return image, error
                raise self._foreign(number, record)
            text = record.decode("utf-8", "surrogateescape")
            image, *cells, error = next(csv.reader(io.StringIO(text, newline=""), strict=True))
            if len(cells) == 3 * self._top:
                return image, error
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise self._foreign(number, record) from error
        raise self._foreign(number, record)

    def _foreign(self, number: int, record: bytes) -> DataError:
        return DataError(
            f"{self.path}, record {number}: expected a line of python -m lattec_jax.predict, found "
            f"{record[:80]!r}; remove it, or choose another --out"
        )

    def append(self, lines: bytes) -> None:
        """Write lines, which then survive a kill of the process; DataError on a full disk."""
        try:
            while lines:
                lines = lines[self._file.write(lines) :]
        except OSError as error:
            raise DataError(
                f"cannot write {self.path}: {error.strerror}; make room, then repeat the command "
                "to continue"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _records(path: Path, kind: str) -> Iterator[bytes]:
    """Iterate over the complete records of a file. In CSV, a record may contain quoted line breaks.
    Raises OSError if it cannot be read, ValueError if a record is too long."""
    record, quotes = bytearray(), 0
    with open_regular(path) as file:
        for part in bounded_lines(file):
            record += part
            quotes += part.count(b'"')
            if len(record) > MAX_LINE_BYTES:
                raise ValueError(f"a record has more than {MAX_LINE_BYTES:,} bytes")
            if part.endswith(b"\n") and (kind == "jsonl" or quotes % 2 == 0):
                yield bytes(record)
                record, quotes = bytearray(), 0


def read_list(path: Path) -> list[str]:
    """Read a list of paths, one per line, or separated by NUL as from `find -print0`."""
    try:
        with open(path, "rb") as file:  # also a pipe, such as <(find ...) in a shell
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the list {path}: {error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"the list {path} has more than {MAX_FILE_BYTES:,} bytes; split it")
    if b"\0" in content:
        names = content.split(b"\0")
    else:
        content = content.removeprefix(codecs.BOM_UTF8)  # editors on Windows begin with it
        names = [name.rstrip(b"\r") for name in content.split(b"\n")]
    found = [os.fsdecode(name) for name in names if name]
    if not found:
        raise DataError(f"the list {path} names no images; expected one path per line")
    return found
