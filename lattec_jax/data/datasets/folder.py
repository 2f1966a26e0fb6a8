"""A data set from any folder of images: class names and labels from folders, lists or a CSV.

    root/                         root/                    root/
      train/cat/1.jpg               cat/1.jpg                a.jpg
      train/dog/2.png               dog/2.png                b.webp
      test/cat/3.jpg              (a share is held out)    + --config.dataset.class_names=names.txt

Ids are POSIX paths relative to the root. Class names, of which a class may have several, are
compared as `class_names` says; those that come from folders are shown with spaces for "_". Hidden
files and folders are skipped, links to folders are followed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.data.datasets import class_names
from lattec_jax.data.datasets.class_names import Names, key
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.datasets.text_files import CsvRows, text_lines
from lattec_jax.runtime.errors import ConfigError, DataError, short_repr
from lattec_jax.runtime.text import truncate

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_LISTED = 10  # items that an error message names
log = logging.getLogger(__name__)


def read_folder(config: ConfigDict) -> Dataset:
    """Read the folder data set that `config.dataset` describes.

    Raises:
        ConfigError: a setting is missing or out of range.
        DataError: folders, lists, class names or labels are missing or contradict each other.
    """
    settings = config.dataset
    root = _root(settings.root)
    train_source = _source(root, settings.train, "train")
    test_source = _source(root, settings.test, "test")
    train = _images(root, train_source or root, "train")
    test = _images(root, test_source, "test") if test_source else {}
    if test_source and test_source.is_dir() and (train_source or root) in test_source.parents:
        train = {image: path for image, path in train.items() if image not in test}
    _refuse_class_as_split(root, settings, train_source, test_source)
    names = _class_names(root, settings.class_names, train_source or root, train)
    protocol = "own test images, inductive, last step"
    if not test:
        train, test = _hold_out(train, settings.held_out_fraction, settings.split_seed)
        protocol = (
            f"{settings.held_out_fraction:g} held out (seed {settings.split_seed}), inductive, "
            "last step"
        )
    if not test:
        protocol = "no test images, inductive, last step"
    bases = {"train": train_source or root, "test": test_source or train_source or root}
    parts = {"train": train, "test": test}
    labels = _labels(root, settings.labels, parts, bases, names)
    splits = {
        part: Split(tuple(found), tuple(found.values()), labels[part], f"config.dataset.{part}")
        if found
        else None
        for part, found in parts.items()
    }
    if splits["train"] is None:
        raise DataError(
            f"no training images are left below {root}: the test part takes all "
            f"{len(test)}; check config.dataset.train and config.dataset.test"
        )
    return Dataset(
        settings.name,
        tuple(own[0] for own in names),
        splits["train"],
        splits["test"],
        protocol,
        tuple(own[1:] for own in names),
        places=(("images", root),),
    )


def _root(value: str) -> Path:
    if not value:
        raise ConfigError(
            "config.dataset.root is empty; set --config.dataset.root=DIR, the folder of images"
        )
    root = Path(value).expanduser()
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise DataError(
            f"config.dataset.root: expected a folder of images, but {root.absolute()} {what}"
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"config.dataset.root: no permission to look into {root.absolute()}")
    return root


def _source(root: Path, value: str, default: str) -> Path | None:
    """The folder or list of a split. None: not given, or the default name that is not there."""
    if not value:
        return None
    if value == default:  # a folder of that name in the working directory is somebody else's
        found = root / value if os.path.exists(root / value) else None
    else:
        found = _find(root, value)
    if found is not None:
        if not found.is_dir() and found.suffix.lower() != ".txt":
            raise DataError(
                f"config.dataset.{default}: expected a folder or a .txt list, found {found}"
            )
        return found
    if value == default:
        return None
    raise DataError(
        f"config.dataset.{default}: expected a folder or a .txt list, but there is no {value} in "
        f"{root.absolute()}; the root has {_listing(sorted(os.listdir(root)))}"
    )


def _find(root: Path, value: str) -> Path | None:
    """A path that the user wrote: relative to the root or else to the working directory."""
    path = Path(value).expanduser()
    for candidate in (root / path, path):
        if os.path.exists(candidate):
            return candidate
    return None


def _refuse_class_as_split(
    root: Path, settings: ConfigDict, train: Path | None, test: Path | None
) -> None:
    """A class called "train" beside other class folders is not the training folder."""
    if not settings.class_names:
        return
    known = class_names.labels_by_key(_read_class_names(root, settings.class_names))
    for part, source in (("train", train), ("test", test)):
        if source is None or source.parent != root or key(source.name) not in known:
            continue
        others = [p.name for p in sorted(root.iterdir()) if p.is_dir() and key(p.name) in known]
        if len(others) > 1:
            raise DataError(
                f"{source} would be the {part} folder, but {source.name!r} is one of the class "
                f"names, as is {next(o for o in others if o != source.name)!r} beside it. If it is "
                f'a class, set --config.dataset.{part}=""; if not, rename one of the two'
            )


def _images(root: Path, source: Path, part: str) -> dict[str, Path]:
    """Id -> path, sorted by id."""
    paths = find_images(source) if source.is_dir() else _read_list(root, source)
    found: dict[str, Path] = {}
    for path in paths:
        image = Path(os.path.relpath(path, root)).as_posix()
        if image in found:
            raise DataError(
                f"{source} names the image {image!r} twice (as {found[image]} and {path}); "
                "name it once"
            )
        try:
            image.encode()
        except UnicodeEncodeError as error:
            encoding = sys.getfilesystemencoding()
            remedy = "rename it" if encoding == "utf-8" else f"set PYTHONUTF8=1 (now {encoding})"
            raise DataError(
                f"expected file names in UTF-8, found {os.fsencode(path)!r}; {remedy}"
            ) from error
        found[image] = path
    if not found:
        kinds = " ".join(SUFFIXES)
        raise DataError(f"no images for the {part} part in {source}; looked for {kinds}")
    return dict(sorted(found.items()))


def find_images(folder: Path) -> list[Path]:
    """Every image below `folder`, following links but no folder twice."""

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot look into {error.filename}: {error.strerror}") from error

    found, seen = [], set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return found


def _read_list(root: Path, source: Path) -> list[Path]:
    """The images that a .txt file names, one a line, relative to the root or absolute.

    A list that lies below the root may have come with the data set: it names images below the
    root only, because images may be sent to a server.
    """
    roots = tuple(Path(os.path.abspath(folder)) for folder in (root, root.resolve()))
    is_foreign = _is_below(source, roots)
    paths, missing = [], []
    for number, line in enumerate(text_lines(source), 1):
        if not line:
            continue
        path = Path(os.path.normpath(root / line))
        if is_foreign and not _is_below(path, roots):
            raise DataError(
                f"{source}, line {number}: expected a path below {roots[0]}, in which the list "
                f"lies, found {short_repr(line)}. A list that lies elsewhere may name any image"
            )
        paths.append(path)
        if not os.path.isfile(path):
            missing.append(f"\n  line {number}: {line}")
    if missing:
        more = f"\n  and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise DataError(
            f"{source} names {len(missing)} images that do not exist; expected one path a line, "
            f"relative to {root.absolute()}:{''.join(missing[:_LISTED])}{more}"
        )
    return paths


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    absolute = Path(os.path.abspath(path))
    return any(absolute.is_relative_to(folder) for folder in folders)


def _class_names(
    root: Path, setting: str, source: Path, images: dict[str, Path]
) -> list[tuple[str, ...]]:
    """The names of each class from their file, or else from the class sub-folders."""
    if setting:
        names, where = _read_class_names(root, setting), setting
    else:
        folders = {_class_folder(source, path) for path in images.values()} - {None}
        names = [(" ".join(name.replace("_", " ").split()),) for name in sorted(folders)]
        where = f"the sub-folders of {source}"
    advice = (
        "Name them in a text file, one a line, and set --config.dataset.class_names=FILE, or put "
        "the images into one folder for each class"
    )
    class_names.check(names, where, advice + _hint_about_split(source))
    return names


def _hint_about_split(source: Path) -> str:
    if source.name not in ("train", "test"):
        return ""
    return f'. If {source.name!r} is a class of yours, set --config.dataset.{source.name}=""'


def _read_class_names(root: Path, setting: str) -> list[tuple[str, ...]]:
    path = _find(root, setting)
    if path is None:
        raise DataError(
            f"config.dataset.class_names: no file {setting} (looked in {Path.cwd()} and "
            f"{root.absolute()}); expected a text file with one class name a line"
        )
    return class_names.parse(text_lines(path), path)


def _class_folder(source: Path, path: Path) -> str | None:
    """The sub-folder of `source` that an image lies in; of a list, the folder it lies in."""
    if not source.is_dir():
        return path.parent.name or None
    parts = Path(os.path.relpath(path, source)).parts
    return parts[0] if len(parts) > 1 else None


def _hold_out(
    images: dict[str, Path], fraction: float, seed: int
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Split images into training and held-out ones by a hash of seed and id, so that images
    that are added later leave the others where they are."""
    ids = list(images)
    count = min(max(1, round(fraction * len(ids))), len(ids) - 1) if fraction else 0
    held = set(sorted(ids, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())[:count])
    train = {image: images[image] for image in ids if image not in held}
    return train, {image: images[image] for image in ids if image in held}


def _labels(
    root: Path,
    setting: str,
    parts: dict[str, dict[str, Path]],
    bases: dict[str, Path],
    names: Names,
) -> dict[str, np.ndarray | None]:
    """The labels of each part as `config.dataset.labels` wants them."""
    if setting == "none":
        return dict.fromkeys(parts)
    if setting not in ("auto", "folders"):
        return _labels_from_csv(root, setting, parts, names)
    classes = class_names.labels_by_key(names)
    labels: dict[str, np.ndarray | None] = {}
    for part, images in parts.items():
        found = [_label_of_folders(root, bases[part], p, classes) for p in images.values()]
        labels[part] = None
        if None not in found:
            labels[part] = np.array(found, np.int32)
        elif setting == "auto" and any(label is not None for label in found):
            log.warning(
                "%d of %d images of the %s part lie in folders that bear a class name; others, "
                "the first %r, do not, so no labels are read there. Rename their folders, or set "
                "config.dataset.labels",
                *(len(found) - found.count(None), len(found), part),
                list(images)[found.index(None)],
            )
        elif setting == "folders":
            image = list(images)[found.index(None)]
            shown = [own[0] for own in names]
            raise DataError(
                f'config.dataset.labels="folders": expected every image below a folder that '
                f"bears a class name, but {found.count(None)} of {len(found)} in the {part} part "
                f"are not, the first: {image!r}. The class names are {_listing(shown)}"
            )
    return labels


def _label_of_folders(root: Path, base: Path, path: Path, classes: dict[str, int]) -> int | None:
    """The class of the nearest folder above an image, within its part, that bears one's name."""
    within = base if base.is_dir() else root
    for folder in reversed(Path(os.path.relpath(path, within)).parts[:-1]):
        if key(folder) in classes:
            return classes[key(folder)]
    return None


def _labels_from_csv(
    root: Path, setting: str, parts: dict[str, dict[str, Path]], names: Names
) -> dict[str, np.ndarray | None]:
    file = _find(root, setting)
    if file is None or not file.is_file():
        raise DataError(
            f'config.dataset.labels: expected "auto", "none", "folders" or a CSV file, found '
            f"{setting!r}, and there is no such file in {root.absolute()} or {Path.cwd()}"
        )
    table = _read_csv(root, file, parts, names)
    labels: dict[str, np.ndarray | None] = {}
    for part, images in parts.items():
        missing = [image for image in images if image not in table]
        if not missing:
            labels[part] = np.array([table[image] for image in images], np.int32)
        elif len(missing) == len(images):
            labels[part] = None
        else:
            raise DataError(
                f"{file} has no label for {len(missing)} of {len(images)} images of the {part} "
                f"part, the first: {missing[0]!r}; label all of a part or none"
            )
    return labels


def _read_csv(
    root: Path, file: Path, parts: dict[str, dict[str, Path]], names: Names
) -> dict[str, int]:
    """Image id -> label, for the rows of a CSV."""
    known = set().union(*parts.values())
    classes = class_names.labels_by_key(names)
    rows = CsvRows(file)
    header = rows.header
    if "image" not in header or "label" not in header:
        raise DataError(
            f"{file}, line 1: expected a header with the columns image,label, found "
            f"{truncate(','.join(header), 80) or 'nothing'}"
        )
    table: dict[str, int] = {}
    for number, row in rows:
        where = f"{file}, line {number}"
        image, label = (row["image"] or "").strip(), (row["label"] or "").strip()
        image = PurePosixPath(image).as_posix()
        if image not in known and not os.path.isfile(root / image):
            raise DataError(
                f"{where}: there is no image {short_repr(image)}; expected a path relative to "
                f"{root.absolute()} such as {min(known)!r}"
            )
        index = classes.get(key(label))
        if index is None and re.fullmatch(r"\d{1,9}", label) and int(label) < len(names):
            index = int(label)
        if index is None:
            shown = [own[0] for own in names]
            raise DataError(
                f"{where}: expected a class name or an index from 0 to {len(names) - 1}, found "
                f"{short_repr(label)}. The class names are {_listing(shown)}"
            )
        if table.setdefault(image, index) != index:
            raise DataError(f"{where}: a second label for {image!r}, unlike the first")
    return table


def _listing(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
