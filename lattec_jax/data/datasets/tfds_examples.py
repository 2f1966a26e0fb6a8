"""The examples of a builder: an index of their names and labels, and their images as files.

FOLDER/index.json        names, labels and sizes, which take long to read from the examples
FOLDER/<id>.jpg          the builder's encoded image, unchanged
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lattec_jax.data.datasets.tfds_builder import encoded_image, label_names, open_split
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.files import partial_file, remove_abandoned, write_json
from lattec_jax.runtime.safe_read import MAX_FILE_BYTES, read_json

INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a builder."""

    split: str  # of the builder
    number: int  # in that split
    name: str  # file name as `config.dataset.tfds.file_name` spells it; "" if that is empty
    label: int
    suffix: str  # of the file name of its encoded image
    size: int  # of that file, in bytes

    @property
    def default_id(self) -> str:
        """Its id if the builder's own splits are used."""
        return f"{self.split}/{self.number:06d}{self.suffix}"


def index_source(builder: Any, pattern: str) -> list:
    """Return JSON values that identify the builder's data and `config.dataset.tfds.file_name`."""
    sizes = [[n, s.num_examples, s.num_bytes] for n, s in sorted(builder.info.splits.items())]
    return [builder.info.full_name, sizes, pattern]


def read_examples(builder: Any, pattern: str) -> Iterator[Example]:
    """Read every example of every split.

    Raise ConfigError if `pattern` names a feature that the builder does not have.
    """
    unknown = set(re.findall(r"{(.*?)}", pattern)) - {"split", *builder.info.features}
    if unknown:
        raise ConfigError(
            f"config.dataset.tfds.file_name={pattern}: {builder.info.full_name} has no feature "
            f"{', '.join(sorted(unknown))}; it has {', '.join(builder.info.features)}"
        )
    labels = label_names(builder)
    for split in builder.info.splits:
        records = open_split(builder, split)
        bar = tqdm(range(len(records)), desc=f"reading {split}", unit="example", leave=False)
        for number in bar:
            record = records[number]
            values = {**record, "split": split, "label": labels[record["label"]]}
            name = re.sub(r"{(.*?)}", lambda match: _text(values[match[1]]), pattern)  # noqa: B023
            image = encoded_image(record, builder)
            suffix = ".png" if image.startswith(b"\x89PNG") else ".jpg"
            yield Example(split, number, name, int(record["label"]), suffix, len(image))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def read_index(folder: Path, source: list, builder: Any) -> list[Example] | None:
    """Return the examples in the index of an earlier run, None if it is missing, of other data,
    damaged or incomplete."""
    try:
        content = read_json(folder / INDEX, MAX_FILE_BYTES)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("source") != source:
        return None
    rows, labels = content.get("examples"), len(label_names(builder))
    if not isinstance(rows, list) or not all(_is_example(row, labels) for row in rows):
        return None
    examples = [Example(*row) for row in rows]
    expected = [
        (split, number)
        for split, info in builder.info.splits.items()
        for number in range(info.num_examples)
    ]
    return examples if [(e.split, e.number) for e in examples] == expected else None


def _is_example(row: Any, labels: int) -> bool:
    return (
        isinstance(row, list)
        and [type(value) for value in row] == [str, int, str, int, str, int]
        and 0 <= row[3] < labels
        and row[4] in (".jpg", ".png")
        and row[5] > 0
    )


def write_index(folder: Path, source: list, examples: Sequence[Example]) -> None:
    """Write the index that `read_index` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [list(dataclasses.astuple(example)) for example in examples]
    write_json(folder / INDEX, {"source": source, "examples": rows})


def write_images(folder: Path, builder: Any, images: Mapping[str, Example]) -> None:
    """Write images, by id, that do not exist yet or were not written completely."""
    missing = [(image, e) for image, e in images.items() if _size(folder / image) != e.size]
    missing.sort(key=lambda entry: (entry[1].split, entry[1].number))
    for parent in {(folder / image).parent for image, _ in missing}:
        remove_abandoned(parent)
    records: dict[str, Any] = {}
    for image, example in tqdm(missing, desc="writing images", unit="image", disable=not missing):
        if example.split not in records:
            records[example.split] = open_split(builder, example.split)
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as file:
            file.write(encoded_image(records[example.split][example.number], builder))


def _size(path: Path) -> int | None:
    try:
        return os.path.getsize(path)
    except OSError:
        return None
