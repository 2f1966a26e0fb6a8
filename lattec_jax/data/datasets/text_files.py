"""Read text and CSV files that users have written."""

from __future__ import annotations

import csv
from pathlib import Path

from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.safe_read import MAX_LINE_BYTES, read_text


def text_lines(path: Path) -> list[str]:
    """Return the stripped lines of a UTF-8 file. A byte order mark is skipped.

    Raise DataError if the file cannot be read, is not UTF-8, or is too large.
    """
    try:
        lines = read_text(path, encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 in {path}: {error}; save it as UTF-8") from error
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"cannot read {path}: line {number} has more than {MAX_LINE_BYTES:,} characters"
            )
    return [line.strip() for line in lines]


def csv_rows(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """Return the header of a CSV file, and its rows with their line numbers.

    Raise DataError if the file cannot be read, or a field is too long for the csv module.
    """
    rows = csv.DictReader(text_lines(file))
    try:
        header = [field.strip() for field in rows.fieldnames or ()]
        rows.fieldnames = header
        return header, [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise DataError(
            f"{file}, line {rows.reader.line_num}: expected comma-separated values, but {error}; "
            "is a quotation mark not closed?"
        ) from error
