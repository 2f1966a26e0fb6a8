"""Find the files of a public data set, and report everything missing or misplaced in one message.

A public set is stored below `$LATTECLIP_DATA_DIR`: the folder `config.dataset.root`, in it the
image folder `config.dataset.images` and the files that list the images. If one of them is missing,
the folders around are searched to suggest a remedy. A file found there is never used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.datasets.error_messages import MAX_LISTED, inaccessible_folder, list_lines
from lattec_jax.data.datasets.image_files import SUFFIXES
from lattec_jax.data.downloads.sources import source_of
from lattec_jax.runtime.errors import DataError

DATA_DIR = "LATTECLIP_DATA_DIR"
_MAX_FOLDERS = 5000  # so that a huge disk does not delay an error message
_MAX_DEPTH = 6  # SUN397/c/church/outdoor has three levels below the image folder
_LIST_SUFFIXES = (".json", ".txt")
_PROBES = 8  # images that are looked for in a folder before all are


def data_root(setting: str) -> Path:
    """Return `config.dataset.root`, below `$LATTECLIP_DATA_DIR` unless it is absolute.

    Raise DataError if the variable is not set or names no folder, or permission is missing.
    """
    root = Path(os.path.expanduser(setting))
    if not root.is_absolute():
        root = _data_dir(setting) / root
    closed = inaccessible_folder(root)
    if closed is not None:
        raise DataError(
            f"no permission to look into {closed}, where {root} is expected; allow it with "
            f"chmod u+rx {closed}, or ask its owner to"
        )
    return root


def _data_dir(setting: str) -> Path:
    value = os.environ.get(DATA_DIR, "")
    if not value:
        raise DataError(
            f"${DATA_DIR} is not set; set it to the folder that contains {setting}/, or pass an "
            "absolute --config.dataset.root"
        )
    folder = Path(os.path.expanduser(value))
    if not os.path.isdir(folder):
        raise DataError(
            f"${DATA_DIR} is {value}, which is not a folder; set it to the folder that contains "
            f"{setting}/"
        )
    return folder


class FileLocator:
    """Finds the files of one data set, collects problems and raises them together."""

    def __init__(self, settings: ConfigDict) -> None:
        self._settings = settings
        self.root = data_root(settings.root)
        self.images = self.root / settings.images
        self.problems: list[str] = []
        self._misplaced_files: list[Path] = []
        self._misplaced_images: Path | None = None  # the folder of all images, if elsewhere

        absolute = os.path.isabs(os.path.expanduser(settings.root))
        self._data_dir = self.root.parent if absolute else _data_dir(settings.root)

    @functools.cached_property
    def _index(self) -> FolderIndex:
        """The root and the data directory, searched when first needed."""
        return FolderIndex(self.root, self._data_dir)

    def find_file(self, name: str, what: str) -> Path | None:
        """Return the path of the list file `name`, which messages call `what`.

        If it is missing, add a problem and return a copy found elsewhere, whose content can be
        checked as well.
        """
        path = self.root / name
        if os.path.isfile(path):
            return path
        copies = self._index.list_files(Path(name).name)
        is_folder = os.path.isdir(path)
        problem = f"{path} is a folder, expected the {what}" if is_folder else f"no {what} {path}"
        if copies:
            remedy = f"replace {path} by it" if is_folder else f"move it to {path}"
            problem += f"; it was found as {copies[0]}: {remedy}"
            self._misplaced_files.append(copies[0])
        self.problems.append(problem)
        return copies[0] if copies else None

    def check_images(self, ids: Sequence[str], source: str) -> None:
        """Add a problem if images of `source` ("the split file") are missing.

        The ids are relative to the image folder; there are none if the lists are missing.
        """
        missing = [image for image in ids if not os.path.isfile(self.images / image)]
        exists = os.path.isdir(self.images)
        if exists and not missing:
            return
        folders = {(self.images / image).parent for image in missing}
        closed = {f for f in map(inaccessible_folder, folders) if f is not None}
        if closed:
            listed = ", ".join(str(folder) for folder in sorted(closed)[:MAX_LISTED])
            self.problems.append(
                f"no permission to look into {listed}, where images of {source} are expected; "
                "allow it with chmod u+rx, or ask the owner to"
            )
            return
        problem = f"no image folder {self.images}"
        if exists:
            counts = f"{len(missing):,} of {len(ids):,}"
            problem = f"{counts} images of {source} are missing below {self.images}"
        listed_images: Sequence[str] = []
        copy, missing_in_copy = self._find_copy(ids)
        if copy is not None and len(missing_in_copy) < max(1, len(missing)):
            contents = _describe_copy(ids, missing_in_copy, source)
            remedy = f"set --config.dataset.images={_below(self.root, copy)}"
            if self._settings.images:
                remedy += f", or move it to {self.images}"
            problem += f"; {copy} contains {contents}: {remedy}"
            listed_images = missing_in_copy
        elif exists:
            folder, rest = self._index.best_match(missing)
            found = folder is not None and not rest
            problem += f"; {folder} contains them: move them" if found else "; get the full set"
            listed_images = missing
        if listed_images:
            problem += f". Missing, {len(listed_images):,}:{list_lines(listed_images, '    ')}"
        self.problems.append(problem)

    def _find_copy(self, ids: Sequence[str]) -> tuple[Path | None, list[str]]:
        """Return a folder that may be the renamed image folder, and the images that it lacks."""
        if not ids:  # without a list only the number of images can tell
            expected = self._settings.expected
            known = expected.train and expected.test
            count = expected.train + expected.test
            return self._index.with_image_count(count) if known else None, []
        folder, missing = self._index.best_match(ids)
        if folder is not None and not missing:
            self._misplaced_images = folder
        return folder, missing

    def raise_problems(self, files: Sequence[str]) -> None:
        """Raise DataError with all problems, if there are any, and the expected list files."""
        if not self.problems:
            return
        problems = self.problems
        if renamed := self._renamed_root(files):
            setting = _below(self._data_dir, renamed)
            remedy = f"move it to {self.root}, or set --config.dataset.root={setting}"
            if renamed == self._data_dir and renamed.name == self._settings.root:
                remedy = f"set {DATA_DIR}={renamed.parent}"
            problems = [f"no folder {self.root}; {renamed} contains its files: {remedy}"]
        images = self._settings.images
        expected = [f"{images}/"] if images else []
        listed = "".join(f"\n- {problem}" for problem in problems)
        source, known = self._settings.source, source_of(self._settings)
        advice = f"; {source} describes the public files" if source else ""
        if known is not None and known.archive is not None:
            advice += "; python -m lattec_jax.download with the same --config gets them"
        raise DataError(
            f"the files of {self._settings.name} are not as expected, {len(problems)} "
            f"{'problem' if len(problems) == 1 else 'problems'}:{listed}\n"
            f"Expected {' and '.join([*expected, ', '.join(files)])} in {self.root}{advice}"
        )

    def _renamed_root(self, files: Sequence[str]) -> Path | None:
        """Return a folder that contains all files and images, if the root does not exist."""
        if os.path.exists(self.root) or len(self._misplaced_files) != len(files):
            return None
        folders = {path.parent for path in self._misplaced_files}
        folder = folders.pop()
        complete = not folders and self._misplaced_images == folder / self._settings.images
        return folder if complete else None


def _below(root: Path, folder: Path) -> str:
    """Return a folder as a setting: relative to `root` if it is below."""
    return folder.relative_to(root).as_posix() if root in folder.parents else str(folder)


def _describe_copy(ids: Sequence[str], missing: Sequence[str], source: str) -> str:
    if not ids:
        return "as many images as expected"
    if not missing:
        return f"all {len(ids):,} images of {source}"
    return f"{len(ids) - len(missing):,} of the {len(ids):,} images of {source}"


class FolderIndex:
    """List files and image counts of all folders below some folders, in breadth-first order.

    The search is bounded. It serves to suggest where misplaced files of a data set are.
    """

    def __init__(self, *roots: Path) -> None:
        self._list_files: dict[str, list[Path]] = {}  # lower-case name -> paths
        self._image_counts: dict[Path, int] = {}  # folder -> images directly in it
        queue = [(root, 0) for root in roots if os.path.isdir(root)]
        seen: set[tuple[int, int]] = set()
        for folder, depth in queue:
            if len(self._image_counts) >= _MAX_FOLDERS:
                break
            try:
                status = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:  # no permission
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            self._image_counts[folder] = 0
            for entry in entries:
                name = entry.name.lower()
                if name.startswith("."):
                    continue
                if _is_folder(entry):
                    if depth < _MAX_DEPTH:
                        queue.append((folder / entry.name, depth + 1))
                elif name.endswith(SUFFIXES):
                    self._image_counts[folder] += 1
                elif name.endswith(_LIST_SUFFIXES) and os.path.isfile(folder / entry.name):
                    self._list_files.setdefault(name, []).append(folder / entry.name)

    def list_files(self, name: str) -> list[Path]:
        """Return the .json and .txt files of that name, ignoring case."""
        return self._list_files.get(name.lower(), [])

    def best_match(self, ids: Sequence[str]) -> tuple[Path | None, list[str]]:
        """Return the folder with the most of these images, and those that it lacks.

        None and all ids if no folder has half of the images.
        """
        probes = ids[:: max(1, len(ids) // _PROBES)]
        missing = {
            folder: [image for image in ids if not os.path.isfile(folder / image)]
            for folder in self._image_counts
            if any(os.path.isfile(folder / image) for image in probes)
        }
        best = min(missing, key=lambda folder: len(missing[folder]), default=None)
        if best is None or 2 * len(missing[best]) > len(ids):
            return None, list(ids)
        return best, missing[best]

    def with_image_count(self, count: int) -> Path | None:
        """Return the innermost folder that has so many images in its tree."""
        totals = dict.fromkeys(self._image_counts, 0)
        for folder, images in self._image_counts.items():
            for parent in (folder, *folder.parents):
                if parent in totals:
                    totals[parent] += images
        matching = [folder for folder, total in totals.items() if total == count]
        return max(matching, key=lambda folder: len(folder.parts), default=None)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False
