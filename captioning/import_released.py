"""Import descriptions that the authors' released code wrote.

    python -m captioning.import_released --config=configs/eurosat.py \\
        --folder=generated_captions/train_classname_eurosat_77_llava-v1.6-mistral-7b_4bit

The released code (github.com/astra-vision/LatteCLIP, preprocess/extract_captions_llava_1_6*.py)
writes one `.txt` per training image into `train_<prompt>_77_<model>_4bit/`, and for groups into
`train_4images_<prompt>_77_<model>_4bit/`. Its training scripts look for the latter without
"4images_"; a folder that was renamed for them is recognized by "describe_common" in its prompt's
name, or by --kind=group.

The name of a text file is its image's base name up to the first dot, or, if base names repeat
(Caltech101), `<class name>_<base name>` (case and "_" in class names are ignored; the name of the
image's folder is accepted too). This command writes
`<artifacts>/<dataset>/descriptions/released-<kind>.jsonl`; train on it with
--config.descriptions.engine=released. The release draws all members of a group, so groups need
--config.descriptions.group_members=drawn here and in training (set by the preset released_code).
The text files contain neither the members of a group nor the wording of the prompt: the records'
"prompt" is the prompt's name, and changed images are not detected.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from lattec_jax.data import datasets
from lattec_jax.data.datasets import class_names
from lattec_jax.data.datasets.dataset import Dataset
from lattec_jax.data.datasets.error_messages import MAX_LISTED, list_lines
from lattec_jax.data.descriptions import Record, descriptions_path, to_line
from lattec_jax.runtime.cli import command, read_config
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.safe_read import read_text
from lattec_jax.runtime.text import escape_unprintable, print_escaped, sanitize

ENGINE = "released"
IMAGE, GROUP = "image", "group"
MAX_TEXT_BYTES = 2**17  # of a text file
_FOLDER = re.compile(r"train_(?:(\d+)images_)?(.+)_(\d+)_(.+)_([48]bit)")
EXAMPLE = "generated_captions/train_classname_eurosat_77_llava-v1.6-mistral-7b_4bit"
_FORM = "train_<prompt>_<tokens>_<model>_4bit or train_<n>images_<prompt>_<tokens>_<model>_4bit"


@dataclasses.dataclass(frozen=True)
class ReleasedFolder:
    """The fields of a folder's name."""

    kind: str
    group_size: int | None  # None: not in the name
    prompt: str
    model: str
    decoding: str

    @classmethod
    def parse(cls, folder: Path, kind: str | None) -> ReleasedFolder:
        """Parse the folder's name; `kind` is the requested one, or None."""
        if kind not in (None, IMAGE, GROUP):
            raise ConfigError(f"--kind: expected {IMAGE} or {GROUP}, found {kind!r}")
        if not folder.is_dir():
            raise DataError(f"--folder: expected a folder of text files, found none at {folder}")
        name = Path(os.path.abspath(folder)).name
        match = _FOLDER.fullmatch(name)
        if match is None:
            raise DataError(
                f"--folder: expected a folder named {_FORM}, found {name!r}; give it the name "
                "that the released code gave it"
            )
        size, prompt, tokens, model, bits = match.groups()
        if size and kind == IMAGE:
            raise ConfigError(f"--kind=image: {name!r} contains descriptions of groups of {size}")
        kind = kind or (GROUP if size or "describe_common" in prompt else IMAGE)
        decoding = f"{bits}, at most {tokens} new tokens"
        return cls(kind, int(size) if size else None, prompt, model, decoding)


@dataclasses.dataclass(frozen=True)
class ImportResult:
    """What was imported and what was not."""

    path: Path
    kind: str
    num_imported: int
    unmatched_files: tuple[str, ...]  # text files without an image
    images_without_text: tuple[str, ...]
    empty_files: tuple[str, ...]

    def report(self) -> str:
        lines = [f"{self.num_imported} {self.kind} descriptions -> {self.path}"]
        for what, names in (
            ("text files that belong to no training image", self.unmatched_files),
            ("training images without a text file", self.images_without_text),
            ("empty text files", self.empty_files),
        ):
            lines.append(f"  {what}: {len(names)}{_listed(names)}")
        drawn = " --config.descriptions.group_members=drawn" if self.kind == GROUP else ""
        lines.append(f"  train on them with --config.descriptions.engine={ENGINE}{drawn}")
        return "\n".join(lines)


def import_released(config: ConfigDict, folder: Path, kind: str | None = None) -> ImportResult:
    """Convert a folder of text files to the file that training reads.

    Args:
        folder: written by the released code.
        kind: "image" or "group"; None: from the folder's name.

    Raises:
        ConfigError: the kind or the configured groups contradict the folder.
        DataError: the folder's name does not match, its texts cannot be assigned to images or read,
            or the output exists with other content.
    """
    source = ReleasedFolder.parse(folder, kind)
    path = _output_path(config, source)
    dataset = datasets.load(config)
    files = sorted(p for p in folder.iterdir() if p.suffix == ".txt" and p.is_file())
    file_of, unmatched = _assign(dataset, files)
    if not file_of:
        raise DataError(
            f"none of the {len(files)} text files in {folder} belongs to a training image of "
            f"{dataset.name}{_listed(unmatched)}; expected names such as "
            f"{_base(dataset.train.ids[0])}.txt. Is this the folder of that data set?"
        )
    texts = {image: _read(file) for image, file in file_of.items()}
    origin = (ENGINE, source.model, source.prompt, source.decoding)
    lines = [
        to_line(Record(image, source.kind, texts[image], *origin))
        for image in dataset.train.ids
        if texts.get(image)
    ]
    _write(path, b"".join(lines))
    return ImportResult(
        path,
        source.kind,
        len(lines),
        unmatched,
        tuple(image for image in dataset.train.ids if image not in file_of),
        tuple(file_of[image].name for image, text in texts.items() if not text),
    )


def _output_path(config: ConfigDict, source: ReleasedFolder) -> Path:
    """Return the file that training with the engine "released" reads."""
    config = config.copy_and_resolve_references().unlock()
    settings = config.descriptions
    if source.kind == GROUP:
        if source.group_size not in (None, settings.group_size):
            raise ConfigError(
                f"the folder contains descriptions of groups of {source.group_size}, and "
                f"config.descriptions.group_size is {settings.group_size}; set "
                f"--config.descriptions.group_size={source.group_size}, here and in training"
            )
        if settings.group_members != "drawn":
            raise ConfigError(
                "the released code draws all members of a group, and "
                f"config.descriptions.group_members is {settings.group_members!r}; set "
                "--config.descriptions.group_members=drawn, here and in training"
            )
        if settings.correct_per_group is not None:
            raise ConfigError(
                "config.descriptions.correct_per_group is set, but the released code draws its "
                "groups without labels; leave it unset"
            )
    settings.engine = ENGINE
    return descriptions_path(config, source.kind)


def _base(image: str) -> str:
    """Return the base name up to the first dot."""
    return image.rpartition("/")[2].partition(".")[0]


def _assign(dataset: Dataset, files: Iterable[Path]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the text file of each image, and the files without an image."""
    train = dataset.train
    images_of: dict[tuple[str, str], dict[str, None]] = {}  # (prefix or "", base name) -> images
    for index, image in enumerate(train.ids):
        prefixes = {"", class_names.key(Path(image).parent.name)}
        if train.labels is not None:
            prefixes |= set(map(class_names.key, dataset.class_synonyms[train.labels[index]]))
        for prefix in prefixes:
            images_of.setdefault((prefix, _base(image)), {})[image] = None
    file_of: dict[str, Path] = {}
    unmatched, ambiguous = [], []
    for file in files:
        name = file.name.removesuffix(".txt")
        # A class name may contain "_" too, so each one may separate it from the base name.
        splits = [i for i, character in enumerate(name) if character == "_"]
        keys = [("", name), *((class_names.key(name[:i]), name[i + 1 :]) for i in splits)]
        images = list(dict.fromkeys(image for key in keys for image in images_of.get(key, ())))
        if not images:
            unmatched.append(file.name)
        elif len(images) > 1:
            ambiguous.append(f"{file.name}: {', '.join(images[:MAX_LISTED])}")
        elif file_of.setdefault(images[0], file) != file:
            ambiguous.append(f"{file_of[images[0]].name} and {file.name}: {images[0]}")
    if ambiguous:
        raise DataError(
            f"{len(ambiguous)} text files do not match exactly one image each; expected names "
            "<class name>_<base name>.txt if base names repeat, and one file per image"
            f"{_listed(ambiguous)}"
        )
    return file_of, tuple(unmatched)


def _read(file: Path) -> str:
    """Read a file as one line; an earlier version of the released code wrote a line per class."""
    try:
        return " ".join(sanitize(read_text(file, MAX_TEXT_BYTES)).split())
    except OSError as error:
        reason = error.strerror or error
        message = f"{file} cannot be read: {reason}; make it readable, or remove it"
        raise DataError(message) from error
    except ValueError as error:
        raise DataError(f"{file}: expected UTF-8 text, found {error}; remove the file") from error


def _write(path: Path, content: bytes) -> None:
    """Write the file; raise DataError if it exists with other content."""
    if path.exists():
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        raise DataError(
            f"{path} contains other descriptions and is not overwritten; move it away to import "
            "these"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def _listed(names: Sequence[str]) -> str:
    return list_lines([escape_unprintable(name) for name in names], indent="    ")


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("folder", "", "Folder of text files.", flag_values=values)
    flags.DEFINE_string(
        "kind", None, "image or group; default: from the folder's name.", flag_values=values
    )


def main(argv: Sequence[str]) -> None:
    config, values = read_config(argv, __doc__, define_flags, {"folder": EXAMPLE})
    print_escaped(import_released(config, Path(values.folder), values.kind).report())


if __name__ == "__main__":
    command(main)
