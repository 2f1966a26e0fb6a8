"""Images and class names as users pass them, as the settings of a folder data set.

Images in memory, lists of paths and class names are written below the folder of artifacts, under
names that depend on their content: the same call finds the same files again, and another one does
not change them. Imports no JAX.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.data.datasets import class_names
from lattec_jax.data.datasets.folder_labels import label_of, unlabeled_message
from lattec_jax.data.datasets.text_files import text_lines
from lattec_jax.data.images.preprocess import image_errors
from lattec_jax.data.images.sources import ImageLike, files_at, image_or_path, is_pattern
from lattec_jax.runtime.errors import ConfigError, DataError, did_you_mean, short_repr
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.text import INVALID

Images = str | os.PathLike[str] | Iterable[ImageLike]
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
_MAX_NAME_CHARS = 60


class Source(NamedTuple):
    """A data set: its values of `config.dataset`, and what the user should know about it."""

    settings: dict[str, Any]
    warnings: list[str]


def read_images(images: Images, artifacts: Path, test: Path | None = None) -> Source:
    """Return the data set of the images that `adapt` was given.

    Args:
        images: a folder, a pattern, or several paths, PIL images and arrays.
        artifacts: `config.artifacts`.
        test: absolute path of a folder, whose images are left out of lists and patterns. (The
            folder data set itself leaves them out of a folder.)

    Raises:
        DataError: there are no images, or something is no image.
    """
    if isinstance(images, (str, os.PathLike)):
        path = Path(images).expanduser()
        if path.is_dir():
            files_at(path)  # refuses a folder without images
            return Source(_folder_settings(path), [])
        if not is_pattern(path):
            raise no_folder("images", path)
        return _from_paths(files_at(path), [], artifacts, test)
    if isinstance(images, (Image.Image, bytes)) or not isinstance(images, Iterable):
        raise DataError(
            "images: expected a folder, a pattern such as 'photos/*.jpg', or several paths, PIL "
            f"images or arrays, found {type(images).__name__}"
        )
    return _from_items(list(images), artifacts, test)


def parts_in_use(config: ConfigDict) -> list[str]:
    """Return a line for each sub-folder `train` or `test` that splits a folder of images."""
    uses = {
        "train": "training images: only those in {}",
        "test": "test images: those in {}; their labels are used for measuring only",
    }
    folders = {part: Path(config.dataset.root, part) for part in uses}
    return [
        uses[part].format(folder)
        for part, folder in folders.items()
        if config.dataset[part] == part and folder.exists()
    ]


def _folder_settings(folder: Path) -> dict[str, Any]:
    name = re.sub(r"[^\w.+-]+", "-", Path(os.path.abspath(folder)).name)[:_MAX_NAME_CHARS]
    return {"name": name.strip("-.") or "images", "root": os.path.abspath(folder)}


def no_folder(what: str, path: Path) -> DataError:
    """Return the error for a folder that does not exist; `what` names the argument."""
    if path.is_file():
        expected = "a folder, a pattern such as '*.jpg', or a list"
        return DataError(
            f"{what}: {path} is one file; expected {expected if what == 'images' else 'a folder'}"
        )
    hint = ""
    if path.parent.is_dir():
        folders = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
        hint = did_you_mean(path.name, folders, path.parent)
    return DataError(f"{what}: no folder {path} (looked in {Path.cwd()}). {hint}".rstrip())


def _from_items(items: Sequence[object], artifacts: Path, test: Path | None) -> Source:
    """Return the data set of several images, of which some may be in memory."""
    given = [image_or_path(item, position) for position, item in enumerate(items)]
    if not given:
        raise DataError("images: expected several images, found none")
    in_memory = {n: _storable(i, n) for n, i in enumerate(given) if isinstance(i, Image.Image)}
    if not in_memory:
        return _from_paths(_existing(given), [], artifacts, test)
    names = {n: f"{_content_hash(image)}.png" for n, image in in_memory.items()}
    digest = hashlib.sha256("\n".join(sorted(set(names.values()))).encode()).hexdigest()[:8]
    folder = artifacts / f"images-{digest}" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in names.items():
        if not (folder / name).exists():
            stream = io.BytesIO()
            in_memory[n].save(stream, "PNG")
            write_atomic(folder / name, stream.getvalue())
    warnings = _repeated(len(names) - len(set(names.values())))
    if len(names) == len(given):
        settings = {"name": f"images-{digest}", "root": os.path.abspath(folder)}
        return Source({**settings, "train": "", "test": ""}, warnings)
    paths = _existing([folder / names[n] if n in names else image for n, image in enumerate(given)])
    return _from_paths(list(dict.fromkeys(paths)), warnings, artifacts, test)


def _existing(given: Sequence[object]) -> list[Path]:
    """Return paths that are all files, or raise DataError."""
    paths = [Path(os.fsdecode(path)).expanduser() for path in given]  # pyright: ignore[reportArgumentType]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"images: {len(missing)} of {len(paths)} paths are no files, the first: "
            f"{short_repr(str(missing[0]))} (looked in {Path.cwd()}); a folder is passed by itself"
        )
    return paths


def _repeated(count: int) -> list[str]:
    if not count:
        return []
    return [f"repeated images: {count}; each is used once"]


def _from_paths(
    paths: Sequence[Path], warnings: list[str], artifacts: Path, test: Path | None
) -> Source:
    """Return the data set of image files, which a list names."""
    found = sorted({os.path.abspath(path) for path in paths})
    warnings = [*warnings, *_repeated(len(paths) - len(found))]
    absolute = [path for path in found if test is None or not Path(path).is_relative_to(test)]
    if not absolute:
        raise DataError(f"images: all {len(found)} are in the folder of test images {test}")
    if len(absolute) < len(found):
        left_out = len(found) - len(absolute)
        warnings.append(f"{left_out} images in {test} are test images, and not used for training")
    root = Path(os.path.commonpath([os.path.dirname(path) for path in absolute]))
    for path in absolute:
        if INVALID.search(path) or path != path.rstrip():
            raise DataError(
                f"images: expected a file name without line breaks and without a space at its "
                f"end, in UTF-8, found {short_repr(path)}; rename it"
            )
    content = "".join(f"{path}\n" for path in absolute)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    settings = _folder_settings(root)
    settings["name"] += f"-{digest}"
    file = artifacts / settings["name"] / "images.txt"
    write_once(file, content)
    settings |= {"train": str(file.absolute()), "test": ""}
    return Source(settings, warnings)


def _storable(image: Image.Image, position: int) -> Image.Image:
    """Return a decoded image in a mode that PNG has."""
    with image_errors(f"image {position}"):
        if 0 in image.size:
            raise ValueError(f"a side of length 0 (width, height: {image.size})")
        image.load()
        return image if image.mode in _PNG_MODES else image.convert("RGB")


def _content_hash(image: Image.Image) -> str:
    """Return a hash of the pixels. (That of a PNG file would depend on the version of zlib.)"""
    header = [image.mode, image.size, image.getpalette(), image.info.get("transparency")]
    return hashlib.sha256(repr(header).encode() + image.tobytes()).hexdigest()[:24]


def write_once(path: Path, content: str) -> None:
    """Write a file whose name depends on its content."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


def read_class_names(classes: str | os.PathLike[str] | Iterable[str]) -> list[str]:
    """Return a line for each class: "name" or "name | another name".

    Args:
        classes: several names; a text file with one line for each class; or the names in a string,
            separated by commas.

    Raises:
        ConfigError: any other value.
        DataError: a name is empty or repeated, or there are fewer than two.
    """
    where = "classes"
    if isinstance(classes, (str, os.PathLike)):
        file = Path(classes).expanduser()
        if file.suffix == ".txt" or isinstance(classes, os.PathLike) or file.is_file():
            if not file.exists():
                raise _no_class_file(file)
            lines, where = text_lines(file), str(file)
        else:
            lines = [name.strip() for name in os.fspath(classes).split(",")]
    elif isinstance(classes, Iterable) and not isinstance(classes, bytes):
        lines = []
        for name in classes:
            if not isinstance(name, str):
                raise ConfigError(
                    f"classes: expected names, found {short_repr(name)} ({type(name).__name__})"
                )
            lines.append(str(name))
        if isinstance(classes, (set, frozenset)):  # which have no order
            lines.sort()
    else:
        raise ConfigError(
            "classes: expected class names such as ['cat', 'dog'], or a text file with one per "
            f"line, found {type(classes).__name__}"
        )
    names = class_names.parse(lines, Path(where))
    advice = "Name all classes that the images may show"
    if where != "classes":
        advice += ", one per line"
    class_names.check(names, where, advice)
    return [" | ".join(synonyms) for synonyms in names]


def _no_class_file(file: Path) -> DataError:
    files = sorted(p.name for p in file.parent.glob("*.txt"))
    hint = did_you_mean(file.name, files, file.parent)
    return DataError(
        f"classes: no file {file} (looked in {Path.cwd()}); expected a text file with one class "
        f"name per line, or the names themselves. {hint}".rstrip()
    )


def check_test_folder(folder: Path, lines: Sequence[str]) -> None:
    """Raise DataError unless each test image is below a folder named like a class.

    Args:
        folder: of test images.
        lines: the class names, as `read_class_names` returns them.
    """
    names = class_names.parse(lines, folder)
    labels_by_key = class_names.labels_by_key(names)
    images = files_at(folder)
    unlabeled = [
        str(path.relative_to(folder))
        for path in images
        if label_of(path, folder, labels_by_key) is None
    ]
    if unlabeled:
        message = unlabeled_message(unlabeled, len(images), str(folder), names)
        raise DataError(
            f"test: {message}; rename the folder or the class, or move the images elsewhere"
        )


def class_names_file(lines: Sequence[str], folder: Path) -> Path:
    """Write class names, and return the file."""
    content = "".join(f"{line}\n" for line in lines)
    file = folder / f"classes-{hashlib.sha256(content.encode()).hexdigest()[:8]}.txt"
    write_once(file, content)
    return file.absolute()
