"""A bounded search around a folder, to suggest where misplaced files of a data set are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lattec_jax.data.datasets.image_files import SUFFIXES

_MAX_FOLDERS = 5000  # so that a huge disk does not delay an error message
_MAX_DEPTH = 6  # SUN397/c/church/outdoor has three levels below the image folder
_LIST_SUFFIXES = (".json", ".txt")
_PROBES = 8  # images that are looked for in a folder before all are


class FolderIndex:
    """List files and image counts of all folders below some folders, in breadth-first order."""

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
