"""Data sets by kind (`config.dataset.kind`).

A new kind is a file, one entry in `KINDS` and its name in `lattec_jax/runtime/config_schema.py`.

A reader names classes and images and writes nothing. Where the images are not files yet, the
data set that it returns carries the function that writes them.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from lattec_jax.data.datasets.coop import read_coop
from lattec_jax.data.datasets.dataset import Dataset, check, take_fraction
from lattec_jax.data.datasets.digits import read_digits
from lattec_jax.data.datasets.fgvc import read_fgvc
from lattec_jax.data.datasets.folder import read_folder
from lattec_jax.data.datasets.tfds import read_tfds
from lattec_jax.runtime.config import artifacts_dir, dataset_dir
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.files import remove_abandoned

KINDS: dict[str, Callable[[ConfigDict], Dataset]] = {
    "folder": read_folder,
    "coop": read_coop,
    "fgvc": read_fgvc,
    "tfds": read_tfds,
    "digits": read_digits,
}


def load(config: ConfigDict) -> Dataset:
    """The data set that `config.dataset` describes, its images on disk; raises as `read` does."""
    dataset = read(config)
    remove_leftovers(config)
    return dataset.on_disk()


def remove_leftovers(config: ConfigDict) -> None:
    """Delete the temporary files that killed processes left in the directories of the data set."""
    for base in {dataset_dir(config), artifacts_dir(config)}:
        for name in ("", "pseudo_labels", "descriptions", "descriptions/shards"):
            remove_abandoned(base / name)


def read(config: ConfigDict) -> Dataset:
    """The data set that `config.dataset` describes. Changes nothing.

    Raises:
        ConfigError: a setting is missing.
        DataError: files that are missing or contradict each other.
    """
    if not config.dataset.name:
        raise ConfigError(
            "config.dataset.name is empty; set --config.dataset.name=NAME (folders get that name)"
        )
    dataset = KINDS[config.dataset.kind](config)
    check(dataset)
    return take_fraction(dataset, config.dataset.train_fraction, config.dataset.split_seed)
