"""Predictions as lines: a table to read, JSON lines or CSV; and files of them that continue.

A line is written whole or, where the process is killed, torn; the next run drops a torn last line
and goes on. Beside FILE lies FILE.settings.json, which says what the lines were made with, so that
no file ever holds predictions of two models. Imports no JAX.
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
    """What stands before the first line."""
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
    """One image's line with its line break.

    Args:
        kind: of `FORMATS`. A table has no line for an image that cannot be read.
        image: its path. Where that is no UTF-8, JSON has its bytes as Python's `os.fsdecode` gives
            them, escaped, and CSV has the bytes themselves.
        classes: names of the k best; none for an image that cannot be read.
        labels: their indices.
        scores: theirs.
        error: why the image cannot be read.
        top: k.
        width: of the names in a table.
    """
    answers = list(zip(classes, labels, scores, strict=True))
    if kind == "csv":
        cells = [cell for answer in answers for cell in answer] or [""] * (3 * top)
        return _csv_row([image, *cells, error or ""])
    if kind == "jsonl":
        if error is not None:
            return _json({"image": image, "error": error})
        best = [{"class": name, "score": score} for name, _, score in answers]
        return _json({"image": image, **best[0], "label": labels[0], "top": best})
    if error is not None:
        return b""
    shown = "  ".join(f"{name:{width}} {score:6.1%}" for name, _, score in answers)
    return f"{shown}  {printable(image)}\n".encode()


def printable(name: str) -> str:
    """A file name on one line: control characters and what is no UTF-8 are escaped."""
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    return escaped.encode("utf-8", "backslashreplace").decode()


def _json(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(content).encode() + b"\n"


def _csv_row(cells: Sequence[Any]) -> bytes:
    row = io.StringIO()
    csv.writer(row).writerow(cells)
    return row.getvalue().encode("utf-8", "surrogateescape")


class PredictionFile:
    """A file that lines are appended to; opening it drops a torn last line.

    Attributes:
        done: the images that have a line already.
        failed: how many of these lines are errors.
    """

    def __init__(self, path: Path, kind: str, top: int, settings: Mapping[str, Any]) -> None:
        """Take the file for this process.

        Args:
            path: of the file.
            kind: "jsonl" or "csv".
            top: classes per line.
            settings: what decides the lines; JSON values.

        Raises:
            ConfigError: it was made with other settings, or by something else.
            DataError: it cannot be written, is in use, or holds lines that are not ours.
        """
        self.path, self._kind, self._top = path, kind, top
        self._claim({"format": kind, "top": top, **settings})
        try:
            # Unbuffered: what could not be written is not tried again when the file is closed.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from error
        self.done: set[str] = set()
        self.failed = 0
        try:
            self._lock()
            self._read()
        except DataError:
            self._file.close()
            raise
        except (OSError, ValueError) as error:
            self._file.close()
            raise DataError(f"{path} cannot be continued: {error}; choose another --out") from error

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Compare with the settings beside the file; write them beside a new one."""
        beside = self.path.with_name(self.path.name + ".settings.json")
        if not self.path.exists():
            try:
                write_json(beside, settings)
            except OSError as error:
                raise DataError(f"cannot write {beside}: {error.strerror}") from error
            return
        from lattec_jax.runtime import schemas

        advice = (
            f"{self.path} exists, and this file has to say how it was made; choose another --out"
        )
        before = schemas.read(beside, schemas.PredictionSettings, ConfigError, advice)
        if listed := differences(before, settings):
            raise ConfigError(
                f"{self.path} was made with other settings; choose another --out, or delete it and "
                f"{beside.name}. What differs:{listed}"
            )

    def _lock(self) -> None:
        """Hold the file until it is closed or the process ends, however that is."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{self.path} is being written by another process; wait for it"
            ) from error
        except OSError:  # a file system without locks
            return

    def _read(self) -> None:
        """Learn what is done, cut off a torn last line, write a header where there is none."""
        first = header(self._kind, self._top)
        whole = 0
        for number, record in enumerate(_records(self.path, self._kind), 1):
            whole += len(record)
            if number == 1 and first:
                if record != first:
                    raise self._foreign(number, record)
                continue
            image, error = self._parse(number, record)
            self.done.add(image)
            self.failed += bool(error)
        self._file.truncate(whole)
        if whole == 0:
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
        """Write lines through to the system.

        Raises:
            DataError: they cannot be written, for example on a full disk.
        """
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
    """The whole records of a file. In CSV, line breaks within quotes are no end.

    Raises:
        ValueError: a record is longer than `MAX_LINE_BYTES`.
        OSError: it cannot be read, or is no regular file.
    """
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
    """The paths that a file lists, one a line, or separated by NUL as by `find -print0`.

    Raises:
        DataError: it cannot be read or lists nothing.
    """
    try:
        with open(path, "rb") as file:  # also a pipe, as the shell's <(find ...) is one
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
        raise DataError(f"the list {path} names no images; expected one path a line")
    return found
