"""Data sets that TensorFlow Datasets has prepared as array_record files. TensorFlow is not needed.

    --config.dataset.kind=tfds     on a configuration whose config.dataset.tfds.builder is set

Where the examples spell the paths of the split file (`config.dataset.tfds.file_name`), CoOp's split
applies: its rows are matched with the examples of all the builder's splits, and ids and class names
are those of kind "coop". So is the protocol, if the builder is known to hand on the public files as
they are (`UNALTERED`); of any other the protocol says whose images they are. Otherwise the
builder's own splits are used, and the protocol says so. The builder's encoded images are written
as files, once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from lattec_jax.data.datasets import coop
from lattec_jax.data.datasets.class_names import spoken
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.datasets.layout import data_root
from lattec_jax.data.datasets.problems import collect, listing
from lattec_jax.runtime.config import dataset_dir
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import partial_file, remove_abandoned, write_json
from lattec_jax.runtime.safe_read import MAX_FILE_BYTES, read_json

PROTOCOL = "tfds, inductive, last step"
INDEX = "index.json"  # beside the images: the examples' names, which take long to read
# Builders whose source, in tensorflow-datasets 4.9.10, copies the bytes of the public files. Not
# sun397, which resizes and compresses all images, nor oxford_iiit_pet, which does it to twelve.
UNALTERED = frozenset(
    {
        "eurosat/rgb/2.0.0",
        "dtd/3.0.1",
        "oxford_flowers102/2.1.1",
        "caltech101/3.0.2",
        "cars196/2.1.0",
    }
)
_OWN_SPLITS = '--config.dataset.split="" uses the builder\'s own splits'


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a builder."""

    split: str  # of the builder
    row: int  # in that split
    name: str  # spelled as `config.dataset.tfds.file_name` says; "" where that is empty
    label: int
    suffix: str  # of a file with its encoded image
    size: int  # of that file, bytes

    @property
    def own_id(self) -> str:
        """Its id where the builder's own splits are used."""
        return f"{self.split}/{self.row:06d}{self.suffix}"


def read_tfds(config: ConfigDict) -> Dataset:
    """The data set of `config.dataset`. Images that are not on disk yet can be written.

    Raises:
        ConfigError: there is no such builder, feature or split.
        DataError: TensorFlow Datasets is not installed, the builder not prepared, the split file
            missing, or rows of it have no example.
    """
    settings = config.dataset
    problems: list[str] = []
    with collect(problems):
        path = _split_file(settings)
    with collect(problems):
        builder = _builder(settings.tfds)
    if problems:
        raise DataError("\n".join(problems))
    source = _identity(builder, settings.tfds.file_name)
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:8]
    folder = dataset_dir(config) / f"tfds-{digest}"
    noted = _read_index(folder, source, builder)
    examples = noted or list(_read_examples(builder, settings.tfds.file_name))
    places = [("examples", Path(builder.data_path)), ("images, written at first use", folder)]
    if path is not None:
        names, train, test = _coop_split(settings, path, builder, examples)
        protocol, places = _protocol(builder), [("split file", path), *places]
        sources = dict.fromkeys(("train", "test"), str(path))
    else:
        names = tuple(_spoken(name, settings.name_spaces) for name in _label_names(builder))
        train, test = (
            [(e.own_id, e.label, e) for e in _of_split(settings.tfds, part, builder, examples)]
            for part in ("train", "test")
        )
        protocol = PROTOCOL
        sources = {n: f"config.dataset.tfds.{n}={settings.tfds[n]}" for n in ("train", "test")}
    wanted = {image: example for image, _, example in [*train, *test]}
    return Dataset(
        settings.name,
        names,
        Split.of(train, folder, sources["train"]),
        Split.of(test, folder, sources["test"]),
        protocol,
        names_source=builder.info.full_name if path is None else str(path),
        places=tuple(places),
        write_images=functools.partial(
            _write, folder, builder, wanted, None if noted else (source, examples)
        ),
    )


Row = tuple[str, int, Example]  # id, label, example


def _protocol(builder: Any) -> str:
    """With CoOp's split: the paper's only where the images are the public files."""
    if builder.info.full_name in UNALTERED:
        return coop.PROTOCOL
    return f"coop split, images of {builder.info.full_name}, inductive, last step"


# ------------------------------------------------------------------------------------ the builder


def _import() -> Any:
    try:
        import array_record  # noqa: F401  the reader of the files, which tfds imports late
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            'config.dataset.kind="tfds": expected TensorFlow Datasets and array_record, but '
            f"{error.name or error} is not installed; pip install -e '.[tfds]'"
        ) from error
    return tfds


def _builder(settings: ConfigDict) -> Any:
    """The builder, prepared as array_record."""
    if not settings.builder:
        raise ConfigError(
            "config.dataset.tfds.builder is empty: TensorFlow Datasets has no builder with the "
            "images of this set; use its files (--config.dataset.kind=coop, or fgvc for FGVC "
            "Aircraft), or name a builder of yours"
        )
    tfds = _import()
    folder = os.path.expanduser(settings.data_dir) or None
    try:
        builder = tfds.builder(settings.builder, data_dir=folder)
    except (ValueError, AssertionError) as error:  # an unknown set, configuration or version
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"config.dataset.tfds.builder={settings.builder}: TensorFlow Datasets knows no such "
            f"builder, and none is prepared in {folder or '~/tensorflow_datasets'}: {first[:300]}"
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


def _identity(builder: Any, pattern: str) -> list:
    """What the index and the images belong to."""
    sizes = [[n, s.num_examples, s.num_bytes] for n, s in sorted(builder.info.splits.items())]
    return [builder.info.full_name, sizes, pattern]


def _label_names(builder: Any) -> list[str]:
    return builder.info.features["label"].names


def _spoken(name: str, name_spaces: str) -> str:
    """SUN397's labels are paths, /c/church/outdoor, which CoOp reads from the inside out."""
    if name.startswith("/"):
        name = " ".join(reversed(name.split("/")[2:]))
    return spoken(name, name_spaces)


def _open(builder: Any, split: str) -> Any:
    """The examples of a split, images as encoded bytes."""
    tfds = _import()
    skip = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder.as_data_source(split=split, decoders=skip)


def _image(example: dict[str, Any], builder: Any) -> bytes:
    image = example["image"]
    if not isinstance(image, bytes):
        raise DataError(
            f"{builder.info.full_name}: expected encoded images, found {type(image).__name__}; "
            "only builders whose image feature holds encoded files can be read"
        )
    return image


# ----------------------------------------------------------------------------------- the examples


def _read_examples(builder: Any, pattern: str) -> Iterator[Example]:
    """Every example of every split."""
    unknown = set(re.findall(r"{(.*?)}", pattern)) - {"split", *builder.info.features}
    if unknown:
        raise ConfigError(
            f"config.dataset.tfds.file_name={pattern}: {builder.info.full_name} has no feature "
            f"{', '.join(sorted(unknown))}; it has {', '.join(builder.info.features)}"
        )
    labels = _label_names(builder)
    for split in builder.info.splits:
        records = _open(builder, split)
        bar = tqdm(range(len(records)), desc=f"reading {split}", unit="example", leave=False)
        for row in bar:
            record = records[row]
            values = {**record, "split": split, "label": labels[record["label"]]}
            name = re.sub(r"{(.*?)}", lambda match: _text(values[match[1]]), pattern)  # noqa: B023
            image = _image(record, builder)
            suffix = ".png" if image.startswith(b"\x89PNG") else ".jpg"
            yield Example(split, row, name, int(record["label"]), suffix, len(image))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _read_index(folder: Path, source: list, builder: Any) -> list[Example] | None:
    """The examples as an earlier run noted them; None where there is no such note, or no whole."""
    try:
        content = read_json(folder / INDEX, MAX_FILE_BYTES)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("source") != source:
        return None
    rows, labels = content.get("examples"), len(_label_names(builder))
    if not isinstance(rows, list) or not all(_is_example(row, labels) for row in rows):
        return None
    examples = [Example(*row) for row in rows]
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    every = [(split, row) for split, size in sizes.items() for row in range(size)]
    return examples if [(e.split, e.row) for e in examples] == every else None


def _is_example(row: Any, labels: int) -> bool:
    return (
        isinstance(row, list)
        and [type(value) for value in row] == [str, int, str, int, str, int]
        and 0 <= row[3] < labels
        and row[4] in (".jpg", ".png")
        and row[5] > 0
    )


def _write(
    folder: Path,
    builder: Any,
    wanted: dict[str, Example],
    index: tuple[list, Sequence[Example]] | None,
) -> None:
    """Write the index, if it is to be, and the images that are not there, or not whole."""
    if index is not None:
        source, examples = index
        folder.mkdir(parents=True, exist_ok=True)
        rows = [list(dataclasses.astuple(example)) for example in examples]
        write_json(folder / INDEX, {"source": source, "examples": rows})
    missing = [(image, e) for image, e in wanted.items() if _size(folder / image) != e.size]
    missing.sort(key=lambda entry: (entry[1].split, entry[1].row))
    for parent in {(folder / image).parent for image, _ in missing}:
        remove_abandoned(parent)
    records: dict[str, Any] = {}
    for image, example in tqdm(missing, desc="writing images", unit="image", disable=not missing):
        if example.split not in records:
            records[example.split] = _open(builder, example.split)
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as file:
            file.write(_image(records[example.split][example.row], builder))


def _size(path: Path) -> int | None:
    """The size of a file in bytes; None where there is none."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


# ------------------------------------------------------------------------------------- the splits


def _of_split(
    settings: ConfigDict, part: str, builder: Any, examples: Sequence[Example]
) -> list[Example]:
    """The examples that `config.dataset.tfds.<part>` names, such as "train[:80%]"."""
    tfds = _import()
    try:
        instruction = tfds.core.ReadInstruction.from_spec(settings[part])
        pieces = instruction.to_absolute(builder.info.splits)
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"config.dataset.tfds.{part}={settings[part]}: expected a split of "
            f"{builder.info.full_name}, one of {', '.join(builder.info.splits)}, or a part such as "
            "train[:80%]"
        ) from error
    return [
        example
        for piece in pieces
        for example in [e for e in examples if e.split == piece.splitname][piece.from_ : piece.to]
    ]


def _split_file(settings: ConfigDict) -> Path | None:
    """CoOp's split file; None where it is not used."""
    if not (settings.split and settings.tfds.file_name):
        return None
    try:
        path = data_root(settings.root) / settings.split
    except DataError as error:
        raise DataError(f"{error}. The split file is looked for there; {_OWN_SPLITS}") from error
    if not os.path.isfile(path):
        raise DataError(
            f"no split file {path} (config.dataset.split)"
            + (f"; {settings.source} says where to get it" if settings.source else "")
            + f". Without it, {_OWN_SPLITS}"
        )
    return path


def _coop_split(
    settings: ConfigDict, path: Path, builder: Any, examples: Sequence[Example]
) -> tuple[tuple[str, ...], list[Row], list[Row]]:
    """Class names, training and test images of the split file; other examples are left out."""
    parts = coop.read_split(path)
    names = coop.split_class_names(parts, path, settings.name_spaces)
    by_name: dict[str, list[Example]] = {}
    for example in examples:
        by_name.setdefault(_key(example.name), []).append(example)
    rows = [row for own in parts.values() for row in own]
    missing = [image for image, _, _ in rows if _key(image) not in by_name]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(rows):,} images of {path} are not among the "
            f"{len(examples):,} examples of {builder.info.full_name}, whose names are such as "
            f"{examples[0].name!r} (config.dataset.tfds.file_name={settings.tfds.file_name}); "
            f"{_OWN_SPLITS}:{listing(missing, '  ')}"
        )
    _check_matches(rows, by_name, builder)
    train, test = (
        [(image, label, by_name[_key(image)][0]) for image, label, _ in own]
        for own in (parts["train"] + parts["val"], parts["test"])
    )
    return names, train, test


def _key(name: str) -> str:
    """What two spellings of a file name have in common."""
    return name.lstrip("/").casefold()


def _check_matches(
    rows: Sequence[coop.Row], by_name: dict[str, list[Example]], builder: Any
) -> None:
    """Raise DataError where names do not tell the images apart, or labels contradict them."""
    labels: dict[int, int] = {}
    for image, label, name in rows:
        found = by_name[_key(image)]
        if len(found) > 1:
            raise DataError(
                f"{len(found)} examples of {builder.info.full_name} are named {found[0].name!r}, "
                f"as is the image {image!r} of the split file; set config.dataset.tfds.file_name "
                "to a spelling that tells them apart, such as '{label}/{file_name}'"
            )
        if labels.setdefault(label, found[0].label) != found[0].label:
            own = _label_names(builder)
            raise DataError(
                f"{builder.info.full_name}: the example {found[0].name!r} has the label "
                f"{own[found[0].label]!r}, but other images that the split file calls {name!r} "
                f"have {own[labels[label]]!r}; the names do not identify the images, so the "
                f"split file cannot be used; {_OWN_SPLITS}"
            )
