"""Look at the files of a data set. Changes nothing.

    python -m lattec_jax.check_data --config=configs/eurosat.py

Prints where the files lie and how many images there are of each class, beside the counts that are
expected. What is missing or lies elsewhere is named all at once, with exit status 2. `train` makes
the same check before it does anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.data import datasets
from lattec_jax.data.datasets.dataset import Dataset, Split, fraction_count
from lattec_jax.runtime.cli import command, read_config
from lattec_jax.runtime.text import print_escaped


def check(config: ConfigDict) -> Dataset:
    """Read the data set that `config` describes, print one line about it and return it.

    Raises:
        ConfigError: a setting that does not exist or is missing.
        DataError: files that are missing or contradict each other.
    """
    dataset = datasets.read(config)
    classes, train, test = _counts(dataset)
    print(f"{dataset.name}: {train:,} images to train on, {test:,} to test, {classes:,} classes")
    for warning in unexpected(config, dataset):
        print_escaped(f"warning: {warning}")
    return dataset


def _counts(dataset: Dataset) -> tuple[int, int, int]:
    test = 0 if dataset.test is None else len(dataset.test.ids)
    return len(dataset.class_names), len(dataset.train.ids), test


def unexpected(config: ConfigDict, dataset: Dataset) -> list[str]:
    """A sentence for each count that differs from `config.dataset.expected`."""
    expected = _expected(config)
    found = dict(zip(expected, _counts(dataset), strict=True))
    return [
        f"expected {count:,} {what}, found {found[what]:,}"
        for what, count in expected.items()
        if count and count != found[what]
    ]


def _expected(config: ConfigDict) -> dict[str, int]:
    """The counts of the whole set, as the configured share makes them; 0: not known."""
    expected = config.dataset.expected
    train = expected.train and fraction_count(expected.train, config.dataset.train_fraction)
    return {
        "classes": expected.classes,
        "training images": train,
        "test images": expected.test,
    }


def report(config: ConfigDict, dataset: Dataset) -> str:
    """What lies where, and how many images of each class there are."""
    lines = [f"{dataset.name}, kind {config.dataset.kind}; protocol: {dataset.protocol}"]
    lines += [f"  {what}: {path}" for what, path in dataset.places]
    if config.dataset.source:
        lines.append(f"  public files: {config.dataset.source}")
    classes, train, test = _counts(dataset)
    total = f"all {classes:,} classes"
    width = max(len(name) for name in (*dataset.class_names, total, "class"))
    row = f"{{:{width}}}  {{:>8}}  {{:>8}}"
    lines += ["", row.format("class", "train", "test")]
    columns = [_of_each_class(split, classes) for split in (dataset.train, dataset.test)]
    lines += [
        row.format(name, *counts)
        for name, *counts in zip(dataset.class_names, *columns, strict=True)
    ]
    lines.append(row.format(total, f"{train:,}", f"{test:,}"))
    if any(expected := _expected(config).values()):
        known = [f"{count:,}" if count else "not known" for count in expected]
        lines.append(row.format("expected", *known[1:]) + f"  of {known[0]} classes")
    warnings = unexpected(config, dataset)
    lines += [f"warning: {warning}" for warning in warnings]
    last = "nothing is missing"
    if warnings:
        differ = "1 count differs" if len(warnings) == 1 else f"{len(warnings)} counts differ"
        last += f", but {differ} from those expected (see the warnings)"
    return "\n".join([*lines, "", last])


def _of_each_class(split: Split | None, classes: int) -> list[str]:
    """How many images of each class a split has; "-" where labels are not known."""
    if split is None or split.labels is None:
        return ["-"] * classes
    return [f"{count:,}" for count in np.bincount(split.labels, minlength=classes)]


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, _ = read_config(argv, __doc__)
    print_escaped(report(config, datasets.read(config)))


if __name__ == "__main__":
    command(main)
