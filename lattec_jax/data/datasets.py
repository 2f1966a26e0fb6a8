"""Data sets by kind (`config.dataset.kind`). A new kind is a file and one entry in `KINDS`."""

from __future__ import annotations

import re
from collections.abc import Callable

from ml_collections import ConfigDict

from lattec_jax.config import did_you_mean
from lattec_jax.data.coop import load_coop
from lattec_jax.data.dataset import Dataset, check
from lattec_jax.data.folder import load_folder
from lattec_jax.demo.digits import load_digits_dataset
from lattec_jax.errors import ConfigError

KINDS: dict[str, Callable[[ConfigDict], Dataset]] = {
    "folder": load_folder,
    "coop": load_coop,
    "digits": load_digits_dataset,
}


def load(config: ConfigDict) -> Dataset:
    """The data set that `config.dataset` describes.

    Raises:
        ConfigError: a setting that does not exist or is missing.
        DataError: files that are missing or contradict each other.
    """
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", config.dataset.name):
        raise ConfigError(
            "config.dataset.name: expected a name of letters, digits, '-', '_', '.' and '+' "
            f"(artefacts go into a directory of that name), found {config.dataset.name!r}; "
            "set --config.dataset.name=NAME"
        )
    kind = config.dataset.kind
    if kind not in KINDS:
        raise ConfigError(
            f"config.dataset.kind: expected one of {', '.join(KINDS)}, "
            f"found {kind!r}. {did_you_mean(kind, KINDS)}"
        )
    dataset = KINDS[kind](config)
    check(dataset)
    return dataset
