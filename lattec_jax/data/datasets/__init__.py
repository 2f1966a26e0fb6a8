"""Readers of data sets, one module per `config.dataset.kind`.

To add a kind, write a module with a function `read_KIND(config) -> Dataset` that writes nothing,
add it to `KINDS`, and add its name to `lattec_jax/runtime/config_schema.py`.
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
    """Read the data set and write its images to disk if necessary. Raises as `read` does."""
    dataset = read(config)
    remove_leftovers(config)
    return dataset.on_disk()


def remove_leftovers(config: ConfigDict) -> None:
    """Delete temporary files of killed processes in the directories of the data set."""
    for folder in {dataset_dir(config), artifacts_dir(config)}:
        for name in ("", "pseudo_labels", "descriptions", "descriptions/shards"):
            remove_abandoned(folder / name)


def read(config: ConfigDict) -> Dataset:
    """Read and check the data set that `config.dataset` describes. Writes nothing.

    Raise ConfigError if a setting is missing, DataError if files are, or contradict each other.
    """
    if not config.dataset.name:
        raise ConfigError(
            "config.dataset.name is empty; set --config.dataset.name=NAME, the name of its folders"
        )
    dataset = KINDS[config.dataset.kind](config)
    check(dataset)
    return take_fraction(dataset, config.dataset.train_fraction, config.dataset.split_seed)
