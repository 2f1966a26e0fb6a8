"""Download the public files of a data set: the images and CoOp's split file.

    python -m lattec_jax.download --config=configs/eurosat.py

Writes below $LATTECLIP_DATA_DIR what `python -m lattec_jax.check_data` expects, and does nothing if
all of it is there. Downloads can be interrupted: the same command goes on. An archive is checked
against its published sum before it is unpacked, and deleted afterwards; an archive that you have
already, put into the data set's folder, is used. For Stanford Cars and UCF101, which have no open
address, the command says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data import datasets
from lattec_jax.data.datasets.file_locator import data_root
from lattec_jax.data.downloads.archives import unpack
from lattec_jax.data.downloads.fetch import fetch
from lattec_jax.data.downloads.sources import SOURCES, Archive
from lattec_jax.runtime.cli import command, config_arguments, print_next, read_config
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import partial_directory, remove_abandoned
from lattec_jax.runtime.text import print_escaped


def download(config: ConfigDict) -> bool:
    """Download what is missing of the data set; return whether anything was.

    Raises:
        ConfigError: the configuration is of none of the paper's sets in their public layout.
        DataError: a file cannot be downloaded or is not the published one, or the folder of the
            images exists but is not complete.
    """
    settings = config.dataset
    source = SOURCES.get(settings.name)
    if source is None or settings.kind not in ("coop", "fgvc"):
        raise ConfigError(
            f"expected a configuration of one of {', '.join(SOURCES)}, whose public files are "
            f'known, found config.dataset.name={settings.name} of kind "{settings.kind}"; '
            "kind tfds downloads by itself"
        )
    root = data_root(settings.root)
    try:
        datasets.read(config)
        return False
    except DataError as error:
        incomplete = error
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    if source.split is not None and not (root / settings.split).exists():
        fetch(source.split, root).rename(root / settings.split)
    if source.archive is None:
        raise DataError(
            f"{source.advice.format(root=root, source=settings.source)}. Then run "
            f"python -m lattec_jax.check_data. Found now: {incomplete}"
        )
    target = root / settings.images
    if not target.exists():
        _download_archive(source.archive, root, target)
        datasets.read(config)
        return True
    try:  # the split file may have been all that was missing
        datasets.read(config)
    except DataError as error:  # not overwritten: these may be the user's own files
        raise DataError(
            f"{target} exists, but the data set is not complete. Move it away, and the same "
            f"command downloads it. {error}"
        ) from error
    return True


def _download_archive(archive: Archive, root: Path, images: Path) -> None:
    path = fetch(archive.file, root)
    with partial_directory(images) as scratch:
        new = scratch / "new"
        unpack(archive, path, new)
        if archive.all_files:
            # The image folder last: while it is missing, the same command begins again.
            for entry in sorted(new.iterdir(), key=lambda entry: entry.name == images.name):
                entry.rename(root / entry.name)
        else:
            new.rename(images)
    path.unlink()


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, _ = read_config(argv, __doc__)
    arguments = " ".join(config_arguments(argv[1:]))
    root = data_root(config.dataset.root)
    if download(config):
        print_escaped(f"the files of {config.dataset.name} are complete in {root}")
    else:
        print_escaped(f"nothing to do: all files of {config.dataset.name} are in {root}")
    print_next(f"python -m lattec_jax.check_data {arguments}")


if __name__ == "__main__":
    command(main)
