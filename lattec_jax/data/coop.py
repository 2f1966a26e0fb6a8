"""Data sets in the layout and with the splits of CoOp (Zhou et al., its DATASETS.md).

    $LATTECLIP_DATA_DIR/eurosat/2750/...                     config.dataset.root, .images
    $LATTECLIP_DATA_DIR/eurosat/split_zhou_EuroSAT.json      config.dataset.split

A split file is `{"train": [[path, label, class name], ...], "val": ..., "test": ...}` with paths
below the image folder. "train" and "val" are the unlabelled training images, as in the paper; their
labels serve the oracle and analysis only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.data.dataset import Dataset, Split
from lattec_jax.errors import DataError

DATA_DIR = "LATTECLIP_DATA_DIR"
PROTOCOL = "coop, inductive, last step"
_LISTED = 10  # missing files that an error message names

Row = tuple[str, int, str]  # path, label, class name


def load_coop(config: ConfigDict) -> Dataset:
    """The data set of `config.dataset`.

    Raises:
        DataError: the folder, the split file or pictures are missing, or the split file is not one.
    """
    root = _root(config.dataset.root)
    images, path = root / config.dataset.images, root / config.dataset.split
    for what, wanted, there in (
        ("image folder", images, images.is_dir()),
        ("split file", path, path.is_file()),
    ):
        if not there:
            raise DataError(
                f"no {what} {wanted}; expected the layout of CoOp's DATASETS.md, "
                f"{config.dataset.images}/ and {config.dataset.split} in {root}"
            )
    parts = _read_split(path)
    class_names = _class_names([row for rows in parts.values() for row in rows], path)
    train, test = parts["train"] + parts["val"], parts["test"]
    _check_files(images, [*train, *test])
    return Dataset(
        config.dataset.name, class_names, _split(images, train), _split(images, test), PROTOCOL
    )


def _root(setting: str) -> Path:
    """`config.dataset.root`, below `$LATTECLIP_DATA_DIR` unless it is absolute."""
    base = os.environ.get(DATA_DIR, "")
    if not base and not Path(setting).is_absolute():
        raise DataError(
            f"${DATA_DIR} is not set; set it to the folder that holds {setting}/, or pass an "
            "absolute --config.dataset.root"
        )
    return Path(base) / setting


def _read_split(path: Path) -> dict[str, list[Row]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
            f"{path}, {part}[{number}]: expected [path, label, class name], found {row!r}"
        )
    return row[0], row[1], row[2]


def _class_names(rows: list[Row], path: Path) -> tuple[str, ...]:
    """Lower-cased, "_" as a space, in the order of their labels."""
    names: dict[int, str] = {}
    for image, label, name in rows:
        if names.setdefault(label, name) != name:
            raise DataError(
                f"{path}: label {label} is {names[label]!r}, but {name!r} for {image}; a label has "
                "one class name"
            )
    missing = sorted(set(range(len(names))) - names.keys())
    if missing:
        raise DataError(f"{path}: expected labels 0 to {len(names) - 1}, found none of {missing}")
    return tuple(names[label].lower().replace("_", " ").strip() for label in range(len(names)))


def _check_files(images: Path, rows: list[Row]) -> None:
    """Name every missing picture in one pass."""
    missing = [image for image, _, _ in rows if not (images / image).is_file()]
    if missing:
        more = f"\n  and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        listed = "".join(f"\n  {image}" for image in missing[:_LISTED])
        raise DataError(
            f"{len(missing)} of {len(rows)} pictures of the split file are missing below "
            f"{images}; get the whole set or correct config.dataset.images:{listed}{more}"
        )


def _split(images: Path, rows: list[Row]) -> Split:
    return Split(
        ids=tuple(image for image, _, _ in rows),
        paths=tuple(images / image for image, _, _ in rows),
        labels=np.array([label for _, label, _ in rows], np.int32),
    )
