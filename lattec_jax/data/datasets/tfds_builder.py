"""Open a builder of TensorFlow Datasets without TensorFlow, and read its examples.

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

from ml_collections import ConfigDict

from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.extras import install_command
from lattec_jax.runtime.files import partial_file, remove_abandoned, write_json
from lattec_jax.runtime.progress import progress_bar
from lattec_jax.runtime.safe_read import MAX_FILE_BYTES, read_json

INDEX = "index.json"


def import_tfds() -> Any:
    """Import TensorFlow Datasets. Raise DataError if it or the reader of its files is missing."""
    try:
        import array_record  # noqa: F401  tensorflow_datasets imports it late
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            'config.dataset.kind="tfds": expected TensorFlow Datasets and array_record, but '
            f"{error.name or error} is not installed; {install_command('tfds')}"
        ) from error
    return tfds


def open_builder(settings: ConfigDict) -> Any:
    """Return the builder of `config.dataset.tfds`, whose data is prepared as array_record.

    Raise ConfigError if there is none with image and label, DataError if it is not prepared.
    """
    if not settings.builder:
        raise ConfigError(
            "config.dataset.tfds.builder is empty: TensorFlow Datasets has no builder with the "
            "images of this set; use its files (--config.dataset.kind=coop, or fgvc for FGVC "
            "Aircraft), or name a builder of yours"
        )
    tfds = import_tfds()
    folder = os.path.expanduser(settings.data_dir) or None
    try:
        builder = tfds.builder(settings.builder, data_dir=folder)
    except (ValueError, AssertionError) as error:  # an unknown set, configuration or version
        first_line = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"config.dataset.tfds.builder={settings.builder}: TensorFlow Datasets knows no such "
            f"builder, and none is prepared in {folder or '~/tensorflow_datasets'}: "
            f"{first_line[:300]}"
        ) from error
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if not builder.info.splits or "array_record" not in formats:
        found = f"as {', '.join(sorted(formats))} only" if builder.info.splits else "nothing"
        where = f", data_dir={folder!r}" if folder else ""
        raise DataError(
            f"expected {settings.builder} prepared as array_record in {builder.data_path}, found "
            f"{found}. Prepare it"
            f"{' in another data_dir' if builder.info.splits else ''} with\n"
            f'  python -c "import tensorflow_datasets as tfds; tfds.builder({settings.builder!r}'
            f"{where}, file_format='array_record').download_and_prepare()\"\n"
            "Preparing, unlike reading, needs tensorflow for most builders"
        )
    for key in ("image", "label"):
        if key not in builder.info.features:
            raise ConfigError(
                f"config.dataset.tfds.builder={settings.builder}: expected the features image and "
                f"label, found {', '.join(builder.info.features)}"
            )
    return builder


def label_names(builder: Any) -> list[str]:
    """Return the builder's class names, in the order of its labels."""
    return builder.info.features["label"].names


def open_split(builder: Any, split: str) -> Any:
    """Return the examples of a split, a sequence, with images as encoded bytes."""
    tfds = import_tfds()
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder.as_data_source(split=split, decoders=skip)


def encoded_image(example: dict[str, Any], builder: Any) -> bytes:
    """Return the bytes of the image file of an example; refuse a builder that stores no files."""
    image = example["image"]
    if not isinstance(image, bytes):
        raise DataError(
            f"{builder.info.full_name}: expected encoded images, found {type(image).__name__}; "
            "only builders whose image feature stores encoded files can be read"
        )
    return image


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
        bar = progress_bar(
            range(len(records)), desc=f"reading {split}", unit="example", leave=False
        )
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
    if not isinstance(rows, list) or not all(
        isinstance(row, list)
        and [type(value) for value in row] == [str, int, str, int, str, int]
        and 0 <= row[3] < labels
        and row[4] in (".jpg", ".png")
        and row[5] > 0
        for row in rows
    ):
        return None
    examples = [Example(*row) for row in rows]
    expected = [
        (split, number)
        for split, info in builder.info.splits.items()
        for number in range(info.num_examples)
    ]
    return examples if [(e.split, e.number) for e in examples] == expected else None


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
    bar = progress_bar(missing, desc="writing images", unit="image", disable=not missing)
    for image, example in bar:
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
