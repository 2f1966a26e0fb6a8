"""The JSON-lines files that workers append to, one each, in `descriptions/shards/`.

Nothing in them is ever rewritten or deleted. A description is found by its key, whichever worker
wrote it and however many workers there were: a changed prompt makes new descriptions, and the old
prompt finds the old ones again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self

from lattec_jax.data.descriptions import Record, lines, records, to_line
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.safe_read import NotRegularFile, open_regular

SYNC_SECONDS = 1.0  # between two calls of fsync: the most that a power failure loses


@dataclasses.dataclass(frozen=True)
class Shard:
    """A worker's part of the images: numbers `index`, `index + count`, `index + 2·count`, ..."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse "0/8". Raises ConfigError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or not shard.index < shard.count:
            raise ConfigError(
                f"--shard: expected i/n with i from 0 to n − 1, such as 0/8 to 7/8, found {text!r}"
            )
        return shard

    def split(self, count: int) -> list[Shard]:
        """Split this shard into `count` shards."""
        return [Shard(self.index + self.count * i, self.count * count) for i in range(count)]


UNSHARDED = Shard(0, 1)


def shard_path(merged: Path, shard: Shard) -> Path:
    """Return the file of a worker, to be merged into `merged`."""
    return merged.parent / "shards" / f"{merged.stem}.{shard.index}-of-{shard.count}.jsonl"


def shard_paths(merged: Path) -> list[Path]:
    """Return the files of all workers so far, in any number of shards."""
    name = re.compile(re.escape(merged.stem) + r"\.(\d+-of-\d+|earlier)\.jsonl")
    found = (merged.parent / "shards").glob("*.jsonl")
    return sorted(path for path in found if name.fullmatch(path.name))


def read_records(merged: Path) -> dict[str, Record]:
    """Read all files: key -> record with a text, or, if there is none, the last failure."""
    found: dict[str, Record] = {}
    for path in [*shard_paths(merged), *([merged] if merged.exists() else [])]:
        for record in records(path):
            if record.key and (not record.error or found.get(record.key, record).error):
                found[record.key] = record
    return found


class ShardWriter:
    """Appends records to a file. Once `append` has returned, a kill does not lose the record.

    Opening locks the file for this process and removes an unfinished last line.
    """

    def __init__(self, path: Path) -> None:
        """Raise DataError if the file is locked, has a malformed line or cannot be opened."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line is passed to the system in one write.
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._lock()
            self._repair()
        except NotRegularFile as error:
            self._file.close()
            raise self._failed(error) from error
        except DataError:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _lock(self) -> None:
        """Lock the file until it is closed or the process ends in any way."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{self._path} is being written by another process; wait for it, or give each "
                "worker another --shard"
            ) from error
        except OSError:  # the file system has no locks
            return

    def _repair(self) -> None:
        with open_regular(self._path) as file:
            last, complete = b"\n", 0
            for last, _ in lines(file, self._path):
                complete += len(last)
        self._file.truncate(complete)
        if not last.endswith(b"\n"):
            self._write(b"\n")

    def append(self, record: Record) -> None:
        """Write a record. Raises DataError if it cannot be written, for example on a full disk."""
        self._write(to_line(record))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _write(self, data: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DataError:
        return DataError(
            f"cannot write {self._path}: {error.strerror}. Its records are intact; free some disk "
            "space, then repeat the command to continue"
        )

    def close(self) -> None:
        """Sync to disk and close."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def count_lines(paths: Sequence[Path]) -> int:
    """Count the records in files that are still being written or do not exist yet."""
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())
