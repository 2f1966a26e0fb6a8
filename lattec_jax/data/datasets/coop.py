"""Data sets in the layout and with the splits of CoOp (Zhou et al., its DATASETS.md).

    $LATTECLIP_DATA_DIR/eurosat/2750/...                     config.dataset.root, .images
    $LATTECLIP_DATA_DIR/eurosat/split_zhou_EuroSAT.json      config.dataset.split

A split file is `{"train": [[path, label, class name], ...], "val": ..., "test": ...}` with paths
below the image folder. "train" and "val" are the unlabeled training images, as in the paper; their
labels are used by the oracle and for analysis only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.data.datasets.class_names import for_template
from lattec_jax.data.datasets.dataset import Dataset, Entry, Split
from lattec_jax.data.datasets.error_messages import collect_errors
from lattec_jax.data.datasets.file_locator import FileLocator
from lattec_jax.runtime.errors import ConfigError, DataError, short_repr
from lattec_jax.runtime.safe_read import MAX_FILE_BYTES, read_json

PROTOCOL = "coop, inductive, last step"


def read_coop(config: ConfigDict) -> Dataset:
    """Read the data set that `config.dataset` describes.

    Raise DataError with all problems in one message: what is missing, and a malformed split file.
    """
    settings = config.dataset
    if not settings.split:
        raise ConfigError(
            'config.dataset.split is empty; kind "coop" reads a split file such as '
            "split_zhou_EuroSAT.json. For a folder of your own use --config.dataset.kind=folder"
        )
    files = FileLocator(settings)
    parts: dict[str, list[Entry]] = {}
    names: tuple[str, ...] = ()
    if path := files.find_file(settings.split, "split file"):
        with collect_errors(files.problems):
            parts = read_split(path)
            names = split_class_names(parts, path, settings.name_spaces)
    images = [image for entries in parts.values() for image, _, _ in entries]
    files.check_images(images, "the split file")
    files.raise_problems([settings.split])
    path = files.root / settings.split
    return Dataset(
        settings.name,
        names,
        Split.from_entries(parts["train"] + parts["val"], files.images, str(path)),
        Split.from_entries(parts["test"], files.images, str(path)),
        PROTOCOL,
        names_source=str(path),
        locations=(("image folder", files.images), ("split file", path)),
    )


def read_split(path: Path) -> dict[str, list[Entry]]:
    """Return the entries (path, label, class name) of "train", "val" and "test"."""
    try:
        content = read_json(path, MAX_FILE_BYTES, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"the split file {path} cannot be read as JSON: {error}") from error
    parts = {}
    for part in ("train", "val", "test"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: expected a list {part!r}, found {type(entries).__name__}")
        parts[part] = [
            _checked_entry(entry, f"{path}, {part}[{number}]")
            for number, entry in enumerate(entries)
        ]
    return parts


def _checked_entry(entry: Any, where: str) -> Entry:
    if (
        not isinstance(entry, list)
        or [type(value) for value in entry] != [str, int, str]
        or entry[1] < 0
        or not entry[2].strip()
    ):
        raise DataError(f"{where}: expected [path, label, class name], found {short_repr(entry)}")
    image, label, name = entry
    try:
        (image + name).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: expected text that can be encoded in UTF-8, found {short_repr(entry)}"
        ) from error
    if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts:
        raise DataError(f"{where}: expected a path below the image folder, found {image!r}")
    return image, label, name


def split_class_names(
    parts: Mapping[str, Sequence[Entry]], path: Path, name_spaces: str
) -> tuple[str, ...]:
    """Return the class names of a split file in the form for templates, in the order of labels.

    Raise DataError if a label has two names, or none.
    """
    names: dict[int, str] = {}
    for image, label, name in (entry for entries in parts.values() for entry in entries):
        if names.setdefault(label, name) != name:
            raise DataError(
                f"{path}: label {label} is {names[label]!r}, but {name!r} for {image}; expected "
                "one class name per label"
            )
    missing = sorted(set(range(len(names))) - names.keys())
    if missing:
        raise DataError(f"{path}: expected labels 0 to {len(names) - 1}, found none of {missing}")
    return tuple(for_template(names[label], name_spaces) for label in range(len(names)))
