"""Find image files below a folder or in a list."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lattec_jax.data.datasets.error_messages import list_lines, warn_once
from lattec_jax.data.datasets.text_files import text_lines
from lattec_jax.runtime.errors import DataError, short_repr

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_MAX_OTHERS = 4  # suffixes of other files that are listed

Images = dict[str, Path]  # id -> path, sorted by id


def images_of(root: Path, source: Path, part: str) -> Images:
    """Return the images of a split, at least one.

    Raise DataError if one is listed twice, or a name is not valid UTF-8.

    Args:
        root: ids are POSIX paths relative to it.
        source: a folder, or a .txt list.
    """
    if source.is_dir():
        paths, others = list_files(source)
        warn_of_other_formats(others)
    else:
        paths = _read_list(root, source)
    found: Images = {}
    for path in paths:
        image = Path(os.path.relpath(path, root)).as_posix()
        if image in found:
            raise DataError(
                f"{source} lists the image {image!r} twice (as {found[image]} and {path}); "
                "list it once"
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
        suffixes = " ".join(SUFFIXES)
        raise DataError(f"no images for the {part} part in {source}; looked for {suffixes}")
    return dict(sorted(found.items()))


def list_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return every image below `folder`, known by its suffix, and every other file.

    Links are followed, but no folder is searched twice. Hidden files and folders are skipped.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot look into {error.filename}: {error.strerror}") from error

    images, others, seen = [], [], set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                kind = images if name.lower().endswith(SUFFIXES) else others
                kind.append(Path(parent, name))
    return images, others


def warn_of_other_formats(others: Sequence[Path]) -> None:
    """Warn of files that are no images by their suffix, if there are any."""
    # A text file may be a list of class names.
    unused = [file for file in others if file.suffix.lower() != ".txt"]
    kinds = Counter(file.suffix.lower() or "no suffix" for file in unused)
    if kinds:
        listed = ", ".join(f"{n} {suffix}" for suffix, n in kinds.most_common(_MAX_OTHERS))
        warn_once(
            f"files of other formats are not used: {kinds.total()} ({listed}), such as "
            f"{os.path.abspath(min(unused))}; save photos as JPEG or PNG"
        )


def _read_list(root: Path, source: Path) -> list[Path]:
    """Return the images of a .txt file, one path per line, relative to the root or absolute.

    A list below the root may have come with the data set. Such a list must not name images outside
    the root: images may be sent to a server.
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
                f"{source}, line {number}: expected a path below {roots[0]}, as the list itself is "
                f"there, found {short_repr(line)}. A list elsewhere may name any image"
            )
        paths.append(path)
        if not os.path.isfile(path):
            missing.append(f"line {number}: {line}")
    if missing:
        raise DataError(
            f"{source} lists {len(missing)} images that do not exist; expected one path per line, "
            f"relative to {root.absolute()}:{list_lines(missing, '  ')}"
        )
    return paths


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    absolute = Path(os.path.abspath(path))
    return any(absolute.is_relative_to(folder) for folder in folders)
