"""Check the files of a data set. Changes nothing.

    python -m lattec_jax.check_data --config=configs/eurosat.py

Prints the locations of the files and the number of images per class, with the expected counts. All
missing or misplaced files are reported at once, with exit status 2. `train` begins with the same
check.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from lattec_jax.data import datasets
from lattec_jax.data.datasets.dataset import Dataset, Split, fraction_count
from lattec_jax.runtime.cli import command, config_arguments, print_next, read_config
from lattec_jax.runtime.text import print_escaped


def check(config: ConfigDict) -> Dataset:
    """Read the data set and print a summary line, with a warning for each unexpected count.

    Raises:
        ConfigError: a setting is unknown or missing.
        DataError: files are missing or contradict each other.
    """
    dataset = datasets.read(config)
    classes, train, test = _counts(dataset)
    print(f"{dataset.name}: {train:,} training images, {test:,} test images, {classes:,} classes")
    for warning in count_warnings(config, dataset):
        print_escaped(f"warning: {warning}")
    return dataset


def _counts(dataset: Dataset) -> tuple[int, int, int]:
    test = 0 if dataset.test is None else len(dataset.test.ids)
    return len(dataset.class_names), len(dataset.train.ids), test


def count_warnings(config: ConfigDict, dataset: Dataset) -> list[str]:
    """Return a warning for each count that differs from `config.dataset.expected`."""
    expected = _expected(config)
    found = dict(zip(expected, _counts(dataset), strict=True))
    return [
        f"expected {count:,} {what}, found {found[what]:,}"
        for what, count in expected.items()
        if count and count != found[what]
    ]


def _expected(config: ConfigDict) -> dict[str, int]:
    """Return the expected counts, for `config.dataset.train_fraction`; 0: unknown."""
    expected = config.dataset.expected
    train = expected.train and fraction_count(expected.train, config.dataset.train_fraction)
    return {
        "classes": expected.classes,
        "training images": train,
        "test images": expected.test,
    }


def report(config: ConfigDict, dataset: Dataset) -> str:
    """Return the locations of the files and a table of the images per class."""
    lines = [f"{dataset.name}, kind {config.dataset.kind}; protocol: {dataset.protocol}"]
    lines += [f"  {what}: {path}" for what, path in dataset.locations]
    if config.dataset.source:
        lines.append(f"  public files: {config.dataset.source}")
    classes, train, test = _counts(dataset)
    total = f"all {classes:,} classes"
    width = max(len(name) for name in (*dataset.class_names, total, "class"))
    row = f"{{:{width}}}  {{:>8}}  {{:>8}}"
    lines += ["", row.format("class", "train", "test")]
    columns = [_class_counts(split, classes) for split in (dataset.train, dataset.test)]
    lines += [
        row.format(name, *counts)
        for name, *counts in zip(dataset.class_names, *columns, strict=True)
    ]
    lines.append(row.format(total, f"{train:,}", f"{test:,}"))
    if any(expected := _expected(config).values()):
        known = [f"{count:,}" if count else "unknown" for count in expected]
        lines.append(row.format("expected", *known[1:]) + f"  in {known[0]} classes")
    warnings = count_warnings(config, dataset)
    lines += [f"warning: {warning}" for warning in warnings]
    last = "all files were found"
    if warnings:
        counts = "1 count differs" if len(warnings) == 1 else f"{len(warnings)} counts differ"
        last += f", but {counts} from config.dataset.expected (see the warnings)"
    return "\n".join([*lines, "", last])


def _class_counts(split: Split | None, classes: int) -> list[str]:
    """Return the number of images of each class, or "-" if labels are unknown."""
    if split is None or split.labels is None:
        return ["-"] * classes
    return [f"{count:,}" for count in np.bincount(split.labels, minlength=classes)]


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, _ = read_config(argv, __doc__)
    print_escaped(report(config, datasets.read(config)))
    print_next(f"python -m lattec_jax.train {shlex.join(config_arguments(argv[1:]))}")


if __name__ == "__main__":
    command(main)
