"""Data sets in the layout and with the splits of CoOp (Zhou et al., its DATASETS.md).

    $LATTECLIP_DATA_DIR/eurosat/2750/...                     config.dataset.root, .images
    $LATTECLIP_DATA_DIR/eurosat/split_zhou_EuroSAT.json      config.dataset.split

A split file is `{"train": [[path, label, class name], ...], "val": ..., "test": ...}` with paths
below the image folder. "train" and "val" are the unlabeled training images, as in the paper; their
labels serve the oracle and analysis only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.data.datasets.class_names import spoken
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.datasets.layout import Layout, Row
from lattec_jax.data.datasets.problems import collect
from lattec_jax.runtime.errors import ConfigError, DataError, short_repr
from lattec_jax.runtime.safe_read import MAX_FILE_BYTES, read_json

PROTOCOL = "coop, inductive, last step"


def read_coop(config: ConfigDict) -> Dataset:
    """The data set of `config.dataset`.

    Raises:
        ConfigError: no split file is named.
        DataError: the folder, the split file or images are missing, or the split file is not one;
            all that is wrong in one message.
    """
    settings = config.dataset
    if not settings.split:
        raise ConfigError(
            'config.dataset.split is empty; kind "coop" reads a split file such as '
            "split_zhou_EuroSAT.json. For a folder of your own use --config.dataset.kind=folder"
        )
    layout = Layout(settings)
    parts: dict[str, list[Row]] = {}
    names: tuple[str, ...] = ()
    path = layout.file(settings.split, "split file")
    if path is not None:
        with collect(layout.problems):
            parts = read_split(path)
            names = split_class_names(parts, path, settings.name_spaces)
    layout.check_images([row[0] for rows in parts.values() for row in rows], "the split file")
    layout.refuse_problems([settings.split])
    return Dataset(
        settings.name,
        names,
        Split.of(parts["train"] + parts["val"], layout.images, str(path)),
        Split.of(parts["test"], layout.images, str(path)),
        PROTOCOL,
        names_source=str(path),
        places=(("image folder", layout.images), ("split file", path)),
    )


def read_split(path: Path) -> dict[str, list[Row]]:
    """The rows of a split file, "train", "val" and "test".

    Raises:
        DataError: it cannot be read, or is not one.
    """
    try:
        content = read_json(path, MAX_FILE_BYTES, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"the split file {path} cannot be read as JSON: {error}") from error
    parts = {}
    for part in ("train", "val", "test"):
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{path}: expected a list {part!r}, found {type(rows).__name__}")
        parts[part] = [_row(row, path, part, number) for number, row in enumerate(rows)]
    return parts


def _row(row: Any, path: Path, part: str, number: int) -> Row:
    if (
        not isinstance(row, list)
        or [type(value) for value in row] != [str, int, str]
        or row[1] < 0
        or not row[2].strip()
    ):
        raise DataError(
            f"{path}, {part}[{number}]: expected [path, label, class name], found {short_repr(row)}"
        )
    try:
        (row[0] + row[2]).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{path}, {part}[{number}]: expected text that UTF-8 can spell, found {short_repr(row)}"
        ) from error
    if PurePosixPath(row[0]).is_absolute() or ".." in PurePosixPath(row[0]).parts:
        raise DataError(
            f"{path}, {part}[{number}]: expected a path below the image folder, found {row[0]!r}"
        )
    return row[0], row[1], row[2]


def split_class_names(
    parts: dict[str, Sequence[Row]], path: Path, name_spaces: str
) -> tuple[str, ...]:
    """The class names of a split file as templates take them, in the order of their labels.

    Raises:
        DataError: a label has two names, or none.
    """
    names: dict[int, str] = {}
    for image, label, name in (row for rows in parts.values() for row in rows):
        if names.setdefault(label, name) != name:
            raise DataError(
                f"{path}: label {label} is {names[label]!r}, but {name!r} for {image}; a label has "
                "one class name"
            )
    missing = sorted(set(range(len(names))) - names.keys())
    if missing:
        raise DataError(f"{path}: expected labels 0 to {len(names) - 1}, found none of {missing}")
    return tuple(spoken(names[label], name_spaces) for label in range(len(names)))
