"""Download the public files of a data set: the images and CoOp's split file.

    python -m lattec_jax.download --config=configs/eurosat.py

Writes below $LATTECLIP_DATA_DIR what `python -m lattec_jax.check_data` expects, and does nothing if
all of it is there. Downloads can be interrupted: the same command goes on. An archive is checked
against its published sum before it is unpacked, and deleted afterwards. An archive that you have
already is used, and kept, if it is in the data set's folder. For Stanford Cars and UCF101, which
have no open address, the command says what to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data import datasets
from lattec_jax.data.datasets.file_locator import data_root
from lattec_jax.data.downloads.archives import unpack
from lattec_jax.data.downloads.fetch import check, fetch, part_path
from lattec_jax.data.downloads.sources import SOURCES, Archive, RemoteFile, Source, source_of
from lattec_jax.runtime.cli import command, config_arguments, print_next, read_config
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import lock, partial_directory, remove_abandoned
from lattec_jax.runtime.text import print_escaped


def download(config: ConfigDict) -> bool:
    """Download what is missing of the data set; return whether anything was.

    Raises:
        ConfigError: the configuration is of none of the paper's sets in their public layout.
        DataError: a file cannot be downloaded or is not the published one, a file or folder in its
            place is not complete, or another process is downloading the data set.
    """
    settings = config.dataset
    source = source_of(settings)
    if source is None:
        raise ConfigError(
            f"expected a configuration of one of {', '.join(SOURCES)}, whose public files are "
            f'known, found config.dataset.name={settings.name} of kind "{settings.kind}"; '
            "kind tfds downloads by itself"
        )
    root = data_root(settings.root)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        remove_abandoned(root)
        changed = not _is_complete(config)
        if changed:
            _get(config, source, root)
        if source.archive is not None:
            part_path(source.archive.file, root).unlink(missing_ok=True)
    return changed


def missing_files(config: ConfigDict) -> list[RemoteFile]:
    """Return the public files of a data set that `download` would download; none if they are not
    known.

    Raises:
        DataError: there is no data directory.
    """
    settings, source = config.dataset, source_of(config.dataset)
    if source is None:
        return []
    root = data_root(settings.root)
    if _is_complete(config):
        return []
    missing = []
    if source.split is not None and not (root / settings.split).exists():
        missing.append(source.split)
    archive = source.archive
    if archive is not None and not (
        os.path.lexists(root / settings.images) or (root / archive.file.name).exists()
    ):
        missing.append(archive.file)
    return missing


def _is_complete(config: ConfigDict) -> bool:
    try:
        datasets.read(config)
    except DataError:
        return False
    return True


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold a lock on the folder, which other downloads hold too."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process is downloading into {root}; wait for it, then run this command "
                "again"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _get(config: ConfigDict, source: Source, root: Path) -> None:
    settings = config.dataset
    if source.split is not None:
        _get_split(source.split, root / settings.split, root)
    images = root / settings.images
    if source.archive is None:
        _read(config, source.advice.format(root=root, source=settings.source))
    elif os.path.lexists(images):  # not overwritten: these may be the user's own files
        advice = f"{images} exists, but is not complete: move it away, and the same command"
        _read(config, f"{advice} downloads it")
    else:
        _get_archive(source.archive, root, images)
        _read(config, f"the archive {source.archive.file.url} lacks files of the data set")


def _read(config: ConfigDict, advice: str) -> None:
    """Read the data set; raise DataError that begins with the advice if it is not complete."""
    try:
        datasets.read(config)
    except DataError as error:
        raise DataError(f"{advice}. Found: {error}") from error


def _get_split(file: RemoteFile, path: Path, root: Path) -> None:
    if path.exists():
        if path.name == file.name:  # else it is the user's own split
            check(file, path, "move it away, and the same command downloads it")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(fetch(file, root), path)


def _get_archive(archive: Archive, root: Path, images: Path) -> None:
    path = fetch(archive.file, root)
    images.parent.mkdir(parents=True, exist_ok=True)
    with partial_directory(images) as scratch:
        new = scratch / "new"
        unpack(archive, path, new)
        for name in archive.files:
            mine = root / name
            if os.path.lexists(mine) and mine.read_bytes() != (new / "files" / name).read_bytes():
                raise DataError(
                    f"{mine} is not the file of the archive {archive.file.url}; move it away, and "
                    "the same command puts the archive's there"
                )
        for name in archive.files:
            os.replace(new / "files" / name, root / name)
        # Last: while the image folder is missing, the same command begins again.
        os.rename(new / "images", images)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, _ = read_config(argv, __doc__)
    arguments = shlex.join(config_arguments(argv[1:]))
    root = data_root(config.dataset.root)
    if download(config):
        print_escaped(f"the files of {config.dataset.name} are complete in {root}")
    else:
        print_escaped(f"nothing to do: all files of {config.dataset.name} are in {root}")
    print_next(f"python -m lattec_jax.check_data {arguments}")


if __name__ == "__main__":
    command(main)
