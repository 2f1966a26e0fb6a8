"""What workers write: one JSON-lines file each, in `descriptions/shards/`, never rewritten.

All that was ever answered stays there. A description is found again by its key, whichever worker
wrote it and however many there were, so that a changed prompt makes new ones and the old prompt
finds the old ones.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from lattec_jax.data.descriptions import Record, lines, records, to_line
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.safe_read import NotRegularFile, open_regular

SYNC_SECONDS = 1.0  # between two writes to the disk itself; a power cut loses no more


class Shard(NamedTuple):
    """A worker's part of the images: those at `index`, `index + count`, `index + 2·count`…"""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "0/8". Raises ConfigError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or not shard.index < shard.count:
            raise ConfigError(
                f"--shard: expected i/n with i from 0 to n − 1, such as 0/8 to 7/8, found {text!r}"
            )
        return shard

    def split(self, count: int) -> list[Shard]:
        """This part again in `count` parts."""
        return [Shard(self.index + self.count * i, self.count * count) for i in range(count)]


WHOLE = Shard(0, 1)


def shard_path(merged: Path, shard: Shard) -> Path:
    """Where a worker writes the descriptions that are merged into `merged`."""
    return merged.parent / "shards" / f"{merged.stem}.{shard.index}-of-{shard.count}.jsonl"


def shard_paths(merged: Path) -> list[Path]:
    """The files of all workers there have been."""
    name = re.compile(re.escape(merged.stem) + r"\.(\d+-of-\d+|earlier)\.jsonl")
    found = (merged.parent / "shards").glob("*.jsonl")
    return sorted(path for path in found if name.fullmatch(path.name))


def recorded(merged: Path) -> dict[str, Record]:
    """Key -> record, of all that workers wrote or was merged: a text, or else the last failure."""
    found: dict[str, Record] = {}
    for path in [*shard_paths(merged), *([merged] if merged.exists() else [])]:
        for record in records(path):
            if record.key and (not record.error or found.get(record.key, record).error):
                found[record.key] = record
    return found


def answered(found: Mapping[str, Record]) -> set[str]:
    """The keys among `recorded` that have a text."""
    return {key for key, record in found.items() if not record.error}


class ShardWriter:
    """Appends records to a file. A record that `append` returned from survives a kill.

    Opening takes the file for this process alone and drops a last line that an earlier writer did
    not finish.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError where the file is in use, holds a malformed line or cannot be opened."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line goes to the system in one piece.
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        try:
            _lock(self._file, path)
            self._repair()
        except NotRegularFile as error:
            self._file.close()
            raise self._failed(error) from error
        except DataError:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _repair(self) -> None:
        with open_regular(self._path) as file:
            last, whole = b"\n", 0
            for last, _ in lines(file, self._path):
                whole += len(last)
        self._file.truncate(whole)
        if not last.endswith(b"\n"):
            self._write(b"\n")

    def append(self, record: Record) -> None:
        """Write a record.

        Raises:
            DataError: it cannot be written, for example on a full disk. What was written before
                stays as it is.
        """
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
            f"cannot write {self._path}: {error.strerror}. What is in it stays as it is; make "
            "room, then repeat the command to continue"
        )

    def close(self) -> None:
        """Hand everything to the disk and close."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _lock(file: BinaryIO, path: Path) -> None:
    """Hold the file until it is closed or the process ends, however that is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            f"{path} is being written by another process; wait for it, or give each worker a part "
            "of its own with --shard"
        ) from error
    except OSError:  # a file system without locks
        return


def count_lines(paths: Sequence[Path]) -> int:
    """Records in files that may still be written, or not be there yet."""
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())
