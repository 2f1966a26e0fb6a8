"""A bounded look around a folder, for files that lie elsewhere than expected."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lattec_jax.data.datasets.folder import SUFFIXES

_FOLDERS = 5000  # that are looked into, so that a huge disk does not hold up a message
_DEPTH = 6  # SUN397/c/church/outdoor has three levels below the image folder
_LISTS = (".json", ".txt")
_PROBES = 8  # images that are looked for in a folder before all are


class Nearby:
    """The folders below some folders, nearest first: their list files and numbers of images."""

    def __init__(self, *bases: Path) -> None:
        self._files: dict[str, list[Path]] = {}  # lower-cased name -> paths
        self._images: dict[Path, int] = {}  # folder -> images in it
        queue = [(base, 0) for base in bases if os.path.isdir(base)]
        seen: set[tuple[int, int]] = set()
        for folder, depth in queue:
            if len(self._images) >= _FOLDERS:
                break
            try:
                status = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:  # a folder that may not be looked into holds nothing for us
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            queue += self._enter(folder, entries, depth)

    def _enter(
        self, folder: Path, entries: Sequence[os.DirEntry], depth: int
    ) -> list[tuple[Path, int]]:
        """Note the files of a folder; return the folders in it."""
        self._images[folder] = 0
        folders = []
        for entry in entries:
            name = entry.name.lower()
            if name.startswith("."):
                continue
            if _is_folder(entry):
                if depth < _DEPTH:
                    folders.append((folder / entry.name, depth + 1))
            elif name.endswith(SUFFIXES):
                self._images[folder] += 1
            elif name.endswith(_LISTS) and os.path.isfile(folder / entry.name):
                self._files.setdefault(name, []).append(folder / entry.name)
        return folders

    def files(self, name: str) -> list[Path]:
        """The list files of that name; case does not count."""
        return self._files.get(name.lower(), [])

    def best(self, ids: Sequence[str]) -> tuple[Path | None, list[str]]:
        """The folder that holds the most of the images `ids`, paths below it; those it lacks.

        None where no folder holds half of them.
        """
        probes = ids[:: max(1, len(ids) // _PROBES)]
        lacking = {
            folder: [image for image in ids if not os.path.isfile(folder / image)]
            for folder in self._images
            if any(os.path.isfile(folder / image) for image in probes)
        }
        best = min(lacking, key=lambda folder: len(lacking[folder]), default=None)
        if best is None or 2 * len(lacking[best]) > len(ids):
            return None, list(ids)
        return best, lacking[best]

    def counts(self, wanted: int) -> Path | None:
        """The innermost folder that holds that many images, at any depth."""
        below = dict.fromkeys(self._images, 0)
        for folder, images in self._images.items():
            for parent in (folder, *folder.parents):
                if parent in below:
                    below[parent] += images
        fitting = [folder for folder, count in below.items() if count == wanted]
        return max(fitting, key=lambda folder: len(folder.parts), default=None)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False
