"""Read text and CSV files that users have written."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.safe_read import read_lines


def text_lines(path: Path) -> list[str]:
    """Return the stripped lines of a UTF-8 file. A byte order mark is skipped.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or is too large.
    """
    try:
        lines = read_lines(path)
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 in {path}: {error}; save it as UTF-8") from error
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return [line.strip() for line in lines]


class CsvRows:
    """The rows of a CSV file with their line numbers.

    Raises:
        DataError: the file cannot be read, or a field is too long for the csv module.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows = csv.DictReader(text_lines(file))
        with self._errors():
            self.header = [field.strip() for field in self._rows.fieldnames or ()]
        self._rows.fieldnames = self.header

    def __iter__(self) -> Iterator[tuple[int, dict[str, str | None]]]:
        while True:
            with self._errors():
                row = next(self._rows, None)
            if row is None:
                return
            yield self._rows.line_num, row

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except csv.Error as error:
            line = self._rows.reader.line_num
            raise DataError(
                f"{self._file}, line {line}: expected comma-separated values, but {error}; is a "
                "quotation mark not closed?"
            ) from error
