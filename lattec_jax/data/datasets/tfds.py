"""Data sets that TensorFlow Datasets has prepared as array_record files. TensorFlow is not needed.

    --config.dataset.kind=tfds     for a configuration that sets config.dataset.tfds.builder

If the examples have the paths of CoOp's split file (`config.dataset.tfds.file_name`), that split is
used: its entries are matched with the examples of all the builder's splits, and ids and class names
are those of kind "coop". So is the protocol, if the builder is known to store the public files
unchanged (`UNALTERED`); otherwise the protocol names the builder. Without a split file the
builder's own splits are used, and the protocol is "tfds".
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.data.datasets import coop
from lattec_jax.data.datasets.class_names import for_template
from lattec_jax.data.datasets.dataset import Dataset, Entry, Split
from lattec_jax.data.datasets.error_messages import collect_errors, list_lines
from lattec_jax.data.datasets.file_locator import data_root
from lattec_jax.data.datasets.tfds_builder import (
    Example,
    import_tfds,
    index_source,
    label_names,
    open_builder,
    read_examples,
    read_index,
    write_images,
    write_index,
)
from lattec_jax.runtime.config import dataset_dir
from lattec_jax.runtime.errors import ConfigError, DataError

PROTOCOL = "tfds, inductive, last step"
# Builders whose source, in tensorflow-datasets 4.9.10, copies the bytes of the public files. Not
# sun397, which resizes and compresses all images, nor oxford_iiit_pet, which does so with twelve.
UNALTERED = frozenset(
    {
        "eurosat/rgb/2.0.0",
        "dtd/3.0.1",
        "oxford_flowers102/2.1.1",
        "caltech101/3.0.2",
        "cars196/2.1.0",
    }
)
_USE_BUILDER_SPLITS = '--config.dataset.split="" uses the builder\'s own splits'


def read_tfds(config: ConfigDict) -> Dataset:
    """Read the data set that `config.dataset` describes.

    Raise ConfigError if there is no such builder, feature or split; DataError if TensorFlow
    Datasets is not installed, the builder not prepared, the split file missing, or an entry of it
    has no example.
    """
    settings = config.dataset
    problems: list[str] = []  # one message reports all that is missing
    split_file = builder = None
    with collect_errors(problems):
        split_file = _split_file(settings)
    with collect_errors(problems):
        builder = open_builder(settings.tfds)
    if builder is None or problems:
        raise DataError("\n".join(problems))
    source = index_source(builder, settings.tfds.file_name)
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:8]
    folder = dataset_dir(config) / f"tfds-{digest}"
    indexed = read_index(folder, source, builder)
    examples = indexed or list(read_examples(builder, settings.tfds.file_name))
    locations = [("examples", Path(builder.data_path)), ("images, written at first use", folder)]
    # The third value of an entry is the example of the image.
    train: list[Entry]
    test: list[Entry]
    if split_file is not None:
        names, train, test = _coop_split(settings, split_file, builder, examples)
        protocol = f"coop split, images of {builder.info.full_name}, inductive, last step"
        if builder.info.full_name in UNALTERED:
            protocol = coop.PROTOCOL
        locations.insert(0, ("split file", split_file))
        train_source = test_source = str(split_file)
    else:
        names = tuple(_class_name(n, settings.name_spaces) for n in label_names(builder))
        train, test = (
            [(e.default_id, e.label, e) for e in _select(settings, part, builder, examples)]
            for part in ("train", "test")
        )
        protocol = PROTOCOL
        train_source, test_source = (
            f"config.dataset.tfds.{part}={settings.tfds[part]}" for part in ("train", "test")
        )

    def write() -> None:
        if not indexed:
            write_index(folder, source, examples)
        write_images(folder, builder, {image: example for image, _, example in [*train, *test]})

    return Dataset(
        settings.name,
        names,
        Split.from_entries(train, folder, train_source),
        Split.from_entries(test, folder, test_source),
        protocol,
        names_source=builder.info.full_name if split_file is None else str(split_file),
        locations=tuple(locations),
        write_images=write,
    )


def _split_file(settings: ConfigDict) -> Path | None:
    """Return the path of CoOp's split file; None if it is not used."""
    if not (settings.split and settings.tfds.file_name):
        return None
    try:
        path = data_root(settings.root) / settings.split
    except DataError as error:
        raise DataError(
            f"{error}. The split file is expected there; {_USE_BUILDER_SPLITS}"
        ) from error
    if not os.path.isfile(path):
        raise DataError(
            f"no split file {path} (config.dataset.split)"
            + (f"; {settings.source} tells where to get it" if settings.source else "")
            + f". Without it, {_USE_BUILDER_SPLITS}"
        )
    return path


def _class_name(name: str, name_spaces: str) -> str:
    # SUN397's labels are paths, /c/church/outdoor, which CoOp reads backwards: "outdoor church".
    if name.startswith("/"):
        name = " ".join(reversed(name.split("/")[2:]))
    return for_template(name, name_spaces)


def _select(
    settings: ConfigDict, part: str, builder: Any, examples: Sequence[Example]
) -> list[Example]:
    """Return the examples that `config.dataset.tfds.<part>` selects, such as "train[:80%]"."""
    tfds = import_tfds()
    try:
        instruction = tfds.core.ReadInstruction.from_spec(settings.tfds[part])
        ranges = instruction.to_absolute(builder.info.splits)
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"config.dataset.tfds.{part}={settings.tfds[part]}: expected a split of "
            f"{builder.info.full_name}, one of {', '.join(builder.info.splits)}, or a part such as "
            "train[:80%]"
        ) from error
    return [
        example
        for r in ranges
        for example in [e for e in examples if e.split == r.splitname][r.from_ : r.to]
    ]


def _coop_split(
    settings: ConfigDict, path: Path, builder: Any, examples: Sequence[Example]
) -> tuple[tuple[str, ...], list[Entry], list[Entry]]:
    """Return class names, training and test images of the split file. Other examples are unused."""
    parts = coop.read_split(path)
    names = coop.split_class_names(parts, path, settings.name_spaces)
    by_name: dict[str, list[Example]] = {}
    for example in examples:
        by_name.setdefault(_file_key(example.name), []).append(example)
    entries = [entry for part in parts.values() for entry in part]
    missing = [image for image, _, _ in entries if _file_key(image) not in by_name]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(entries):,} images of {path} are not among the "
            f"{len(examples):,} examples of {builder.info.full_name}, whose names are such as "
            f"{examples[0].name!r} (config.dataset.tfds.file_name={settings.tfds.file_name}); "
            f"{_USE_BUILDER_SPLITS}:{list_lines(missing, '  ')}"
        )
    _check_matches(entries, by_name, builder)
    train, test = (
        [(image, label, by_name[_file_key(image)][0]) for image, label, _ in part]
        for part in (parts["train"] + parts["val"], parts["test"])
    )
    return names, train, test


def _file_key(name: str) -> str:
    """Return the form of a file name by which names are compared."""
    return name.lstrip("/").casefold()


def _check_matches(
    entries: Sequence[Entry], by_name: Mapping[str, Sequence[Example]], builder: Any
) -> None:
    """Raise DataError if names do not identify the images, or labels contradict the names."""
    builder_labels: dict[int, int] = {}  # label of the split file -> of the builder
    for image, label, name in entries:
        matches = by_name[_file_key(image)]
        if len(matches) > 1:
            raise DataError(
                f"{len(matches)} examples of {builder.info.full_name} are named "
                f"{matches[0].name!r}, as is the image {image!r} of the split file; set "
                "config.dataset.tfds.file_name to a pattern that distinguishes them, such as "
                "'{label}/{file_name}'"
            )
        if builder_labels.setdefault(label, matches[0].label) != matches[0].label:
            names = label_names(builder)
            raise DataError(
                f"{builder.info.full_name}: the example {matches[0].name!r} has the label "
                f"{names[matches[0].label]!r}, but other images that the split file calls "
                f"{name!r} have {names[builder_labels[label]]!r}; the names do not identify the "
                f"images, so the split file cannot be used; {_USE_BUILDER_SPLITS}"
            )
