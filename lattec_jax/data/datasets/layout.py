"""Where the files of a public data set lie, and all that is missing or misplaced, in one message.

The sets lie below `$LATTECLIP_DATA_DIR`: `config.dataset.root`, the image folder
`config.dataset.images` in it, and beside that the files that name the images. What is not in its
place is looked for nearby, to say where it was found; it is never used from there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.datasets.path_suggestions import Nearby
from lattec_jax.data.datasets.problems import LISTED, forbidden, listing
from lattec_jax.runtime.errors import DataError

DATA_DIR = "LATTECLIP_DATA_DIR"

Row = tuple[str, int, str]  # path below the image folder, label, class name


def data_root(setting: str) -> Path:
    """`config.dataset.root`, below `$LATTECLIP_DATA_DIR` unless it is absolute.

    Raises:
        DataError: the variable is not set or names no folder, or one may not be looked into.
    """
    root = Path(os.path.expanduser(setting))
    if not root.is_absolute():
        root = _data_dir(setting) / root
    closed = forbidden(root)
    if closed is not None:
        raise DataError(
            f"no permission to look into {closed}, where {root} is looked for; allow it with "
            f"chmod u+rx {closed}, or ask its owner to"
        )
    return root


def _data_dir(setting: str) -> Path:
    base = os.environ.get(DATA_DIR, "")
    if not base:
        raise DataError(
            f"${DATA_DIR} is not set; set it to the folder that holds {setting}/, or pass an "
            "absolute --config.dataset.root"
        )
    folder = Path(os.path.expanduser(base))
    if not os.path.isdir(folder):
        raise DataError(
            f"${DATA_DIR} is {base}, which is no folder; set it to the folder that holds {setting}/"
        )
    return folder


class Layout:
    """The files of one data set. Problems are collected and raised together.

    Raises:
        DataError: there is no data directory, or it may not be looked into.
    """

    def __init__(self, settings: ConfigDict) -> None:
        self._settings = settings
        self.root = data_root(settings.root)
        self.images = self.root / settings.images
        self.problems: list[str] = []
        self._nearby: Nearby | None = None
        self._found: list[Path] = []  # files that lie elsewhere
        self._found_images: Path | None = None  # the images, if they do

    @property
    def nearby(self) -> Nearby:
        """What lies in the root and in the data directory; looked through when first needed."""
        if self._nearby is None:
            self._nearby = Nearby(self.root, self.data_dir)
        return self._nearby

    @property
    def data_dir(self) -> Path:
        """The folder that holds the roots."""
        absolute = os.path.isabs(os.path.expanduser(self._settings.root))
        return self.root.parent if absolute else _data_dir(self._settings.root)

    def file(self, name: str, what: str) -> Path | None:
        """The file `name` of the root, to be read. One found elsewhere is a problem, and returned.

        Args:
            name: below the root.
            what: it is, for the message.
        """
        path = self.root / name
        if os.path.isfile(path):
            return path
        copies = self.nearby.files(Path(name).name)
        blocked = os.path.isdir(path)
        problem = f"{path} is a folder, expected the {what}" if blocked else f"no {what} {path}"
        if copies:
            remedy = f"put that in the place of {path}" if blocked else f"move it to {path}"
            problem += f"; it was found as {copies[0]}: {remedy}"
            self._found.append(copies[0])
        self.problems.append(problem)
        return copies[0] if copies else None

    def check_images(self, ids: Sequence[str], source: str) -> None:
        """Look for the images.

        Args:
            ids: paths below the image folder; none where the files that name them are missing.
            source: what names them, for the message.
        """
        missing = [image for image in ids if not os.path.isfile(self.images / image)]
        there = os.path.isdir(self.images)
        if there and not missing:
            return
        folders = {(self.images / image).parent for image in missing}
        closed = {forbidden(folder) for folder in folders} - {None}
        if closed:
            named = ", ".join(str(folder) for folder in sorted(closed)[:LISTED])
            self.problems.append(
                f"no permission to look into {named}, where images of {source} should lie; "
                "allow it with chmod u+rx, or ask the owner to"
            )
            return
        problem = f"no image folder {self.images}"
        if there:
            problem = (
                f"{len(missing):,} of {len(ids):,} images of {source} are missing below "
                f"{self.images}"
            )
        folder, lacking = self._copy(ids)
        if folder is not None and len(lacking) < max(1, len(missing)):
            problem += f"; {folder} holds {_how_many(ids, lacking, source)}: {self._remedy(folder)}"
            listed = lacking
        elif there:
            holder, rest = self.nearby.best(missing)
            found = holder is not None and not rest
            problem += f"; {holder} holds them: move them" if found else "; get the whole set"
            listed = missing
        else:
            listed = []
        if listed:
            problem += f". Missing there, {len(listed):,}:{listing(listed, '    ')}"
        self.problems.append(problem)

    def _copy(self, ids: Sequence[str]) -> tuple[Path | None, list[str]]:
        """The folder that may be the image folder, renamed, and the images that it lacks."""
        if not ids:
            expected = self._settings.expected
            known = expected.train and expected.test
            return self.nearby.counts(expected.train + expected.test) if known else None, []
        folder, lacking = self.nearby.best(ids)
        if folder is not None and not lacking:
            self._found_images = folder
        return folder, lacking

    def _remedy(self, folder: Path) -> str:
        """What to do about images that lie in another folder."""
        inside = self.root in folder.parents
        setting = folder.relative_to(self.root).as_posix() if inside else folder
        remedy = f"set --config.dataset.images={setting}"
        return f"{remedy}, or move it to {self.images}" if self._settings.images else remedy

    def refuse_problems(self, files: Sequence[str]) -> None:
        """Raise DataError with all that was found wrong.

        Args:
            files: that belong into the root beside the image folder, for the message.
        """
        if not self.problems:
            return
        problems = self.problems
        renamed = self._renamed_root(files)
        if renamed is not None:
            problems = [
                f"no folder {self.root}; {renamed} has its files: {self._root_remedy(renamed)}"
            ]
        images = self._settings.images
        inside = [f"{images}/"] if images else []
        listed = "".join(f"\n- {problem}" for problem in problems)
        source = self._settings.source
        raise DataError(
            f"the files of {self._settings.name} are not as expected, {len(problems)} "
            f"{'problem' if len(problems) == 1 else 'problems'}:{listed}\n"
            f"Expected {' and '.join([*inside, ', '.join(files)])} in {self.root}"
            + (f"; {source} describes the public files" if source else "")
        )

    def _renamed_root(self, files: Sequence[str]) -> Path | None:
        """A folder that holds the whole layout, where the root does not exist."""
        if os.path.exists(self.root) or len(self._found) != len(files):
            return None
        folders = {path.parent for path in self._found}
        folder = folders.pop()
        whole = not folders and self._found_images == folder / self._settings.images
        return folder if whole else None

    def _root_remedy(self, folder: Path) -> str:
        """What to do about a whole set that lies in another folder than the root."""
        if folder == self.data_dir and folder.name == self._settings.root:
            return f"set {DATA_DIR}={folder.parent}"
        inside = self.data_dir in folder.parents
        setting = folder.relative_to(self.data_dir).as_posix() if inside else folder
        return f"move it to {self.root}, or set --config.dataset.root={setting}"


def _how_many(ids: Sequence[str], lacking: Sequence[str], source: str) -> str:
    """What a copy of the image folder holds."""
    if not ids:
        return "as many images as expected"
    if not lacking:
        return f"all {len(ids):,} images of {source}"
    return f"{len(ids) - len(lacking):,} of the {len(ids):,} images of {source}"
