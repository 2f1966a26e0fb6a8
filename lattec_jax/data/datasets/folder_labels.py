"""Class names and labels of a folder data set: from a file, from sub-folders or from a CSV file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lattec_jax.data.datasets import class_names
from lattec_jax.data.datasets.class_names import NamesByClass, key
from lattec_jax.data.datasets.error_messages import list_inline, warn_once
from lattec_jax.data.datasets.image_files import Images
from lattec_jax.data.datasets.text_files import csv_rows, text_lines
from lattec_jax.runtime.errors import DataError, short_repr
from lattec_jax.runtime.text import truncate


def find_path(root: Path, setting: str) -> Path | None:
    """Find a path given by the user, relative to the root or else to the working directory."""
    path = Path(setting).expanduser()
    for candidate in (root / path, path):
        if os.path.exists(candidate):
            return candidate
    return None


def names_by_class(root: Path, setting: str, source: Path, images: Images) -> list[tuple[str, ...]]:
    """Return the names of each class. Raise DataError for fewer than two, or a malformed file.

    Args:
        setting: `config.dataset.class_names`, a file; empty: the sub-folders of `source`, which
            are displayed with spaces for "_".
        source: the folder or list of the training images.
    """
    if setting:
        names, where = read_class_names(root, setting), setting
    else:
        folders = {_class_folder(source, path) for path in images.values()} - {""}
        names = [(" ".join(name.replace("_", " ").split()),) for name in sorted(folders)]
        where = f"the sub-folders of {source}"
    advice = (
        "Name them in a text file, one per line, and set --config.dataset.class_names=FILE, or put "
        "the images into one folder for each class"
    )
    if source.name in ("train", "test"):
        advice += f'. If {source.name!r} is a class of yours, set --config.dataset.{source.name}=""'
    class_names.check(names, where, advice)
    return names


def read_class_names(root: Path, setting: str) -> list[tuple[str, ...]]:
    """Read the file `config.dataset.class_names`. Raise DataError if it is missing or malformed."""
    path = find_path(root, setting)
    if path is None:
        raise DataError(
            f"config.dataset.class_names: no file {setting} (looked in {Path.cwd()} and "
            f"{root.absolute()}); expected a text file with one class name per line"
        )
    return class_names.parse(text_lines(path), path)


def _class_folder(source: Path, path: Path) -> str:
    """Return the sub-folder of `source` with an image ("": none); the image's folder for a list."""
    if not source.is_dir():
        return path.parent.name
    parts = Path(os.path.relpath(path, source)).parts
    return parts[0] if len(parts) > 1 else ""


def read_labels(
    root: Path,
    setting: str,
    parts: Mapping[str, Images],
    sources: Mapping[str, Path],
    names: NamesByClass,
) -> dict[str, np.ndarray | None]:
    """Return the labels of each split by `config.dataset.labels`, or None if they are unknown.

    Raise DataError if labels that were asked for are missing or contradict each other. `sources`
    are the folder or list of each split.
    """
    if setting == "none":
        return dict.fromkeys(parts)
    if setting not in ("auto", "folders"):
        return _labels_from_csv(root, setting, parts, names)
    labels_by_key = class_names.labels_by_key(names)
    found: dict[str, np.ndarray | None] = {}
    for part, images in parts.items():
        base = sources[part] if sources[part].is_dir() else root
        labels = {image: label_of(path, base, labels_by_key) for image, path in images.items()}
        found[part] = _labels_from_folders(part, labels, names, required=setting == "folders")
    return found


def label_of(path: Path, base: Path, labels_by_key: Mapping[str, int]) -> int | None:
    """Return the label of the nearest folder above an image, below `base`, named like a class."""
    for folder in reversed(Path(os.path.relpath(path, base)).parts[:-1]):
        if key(folder) in labels_by_key:
            return labels_by_key[key(folder)]
    return None


def _labels_from_folders(
    part: str, labels: Mapping[str, int | None], names: NamesByClass, required: bool
) -> np.ndarray | None:
    """Return the labels of a split, by image, if every image has one."""
    unlabeled = [image for image, label in labels.items() if label is None]
    if not unlabeled:
        return np.array(list(labels.values()), np.int32)
    if required:
        where = f"the {part} part"
        message = unlabeled_message(unlabeled, len(labels), where, names)
        raise DataError(f'config.dataset.labels="folders": {message}')
    if len(unlabeled) < len(labels):
        warn_once(
            f"{len(labels) - len(unlabeled)} of {len(labels)} images of the {part} part are in "
            f"folders named like a class, but others, the first {unlabeled[0]!r}, are not, so no "
            "labels are read there. Rename their folders, or set config.dataset.labels"
        )
    return None


def unlabeled_message(unlabeled: Sequence[str], total: int, where: str, names: NamesByClass) -> str:
    """Return the message about images that are in no folder named like a class."""
    return (
        f"expected every image below a folder named like a class, but {len(unlabeled)} of {total} "
        f"in {where} are not, the first: {unlabeled[0]!r}. The class names are "
        f"{_display_names(names)}"
    )


def _display_names(names: NamesByClass) -> str:
    return list_inline([synonyms[0] for synonyms in names])


def _labels_from_csv(
    root: Path, setting: str, parts: Mapping[str, Images], names: NamesByClass
) -> dict[str, np.ndarray | None]:
    file = find_path(root, setting)
    if file is None or not file.is_file():
        raise DataError(
            f'config.dataset.labels: expected "auto", "none", "folders" or a CSV file, found '
            f"{setting!r}, and there is no such file in {root.absolute()} or {Path.cwd()}"
        )
    label_of = _read_csv(root, file, parts, names)
    labels: dict[str, np.ndarray | None] = {}
    for part, images in parts.items():
        missing = [image for image in images if image not in label_of]
        if not missing:
            labels[part] = np.array([label_of[image] for image in images], np.int32)
        elif len(missing) == len(images):
            labels[part] = None
        else:
            raise DataError(
                f"{file} has no label for {len(missing)} of {len(images)} images of the {part} "
                f"part, the first: {missing[0]!r}; label all images of a part or none"
            )
    return labels


def _read_csv(
    root: Path, file: Path, parts: Mapping[str, Images], names: NamesByClass
) -> dict[str, int]:
    """Return image id -> label."""
    known = set().union(*parts.values())
    labels_by_key = class_names.labels_by_key(names)
    header, rows = csv_rows(file)
    if "image" not in header or "label" not in header:
        raise DataError(
            f"{file}, line 1: expected a header with the columns image,label, found "
            f"{truncate(','.join(header), 80) or 'nothing'}"
        )
    label_of: dict[str, int] = {}
    for number, row in rows:
        where = f"{file}, line {number}"
        image, text = (row["image"] or "").strip(), (row["label"] or "").strip()
        image = PurePosixPath(image).as_posix()
        if image not in known and not os.path.isfile(root / image):
            raise DataError(
                f"{where}: there is no image {short_repr(image)}; expected a path relative to "
                f"{root.absolute()} such as {min(known)!r}"
            )
        label = labels_by_key.get(key(text))
        if label is None and re.fullmatch(r"\d{1,9}", text) and int(text) < len(names):
            label = int(text)
        if label is None:
            raise DataError(
                f"{where}: expected a class name or an index from 0 to {len(names) - 1}, found "
                f"{short_repr(text)}. The class names are {_display_names(names)}"
            )
        if label_of.setdefault(image, label) != label:
            raise DataError(f"{where}: a second label for {image!r}, unlike the first")
    return label_of
