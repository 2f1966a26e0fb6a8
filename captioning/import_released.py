"""Train on descriptions that the authors' released code made.

    python -m captioning.import_released --config=configs/eurosat.py \\
        --folder=generated_captions/train_classname_eurosat_77_llava-v1.6-mistral-7b_4bit

The released code (github.com/astra-vision/LatteCLIP, preprocess/extract_captions_llava_1_6*.py)
writes one `.txt` per training image into `train_<prompt>_77_<model>_4bit/`, and for groups into
`train_4images_<prompt>_77_<model>_4bit/`. Its training scripts look for the latter without
"4images_"; a folder that was renamed for them is known by "describe_common" in its prompt's name,
or by --kind=group.

A text file bears its image's id: the image's base name up to the first dot, or, where base names
repeat (Caltech101), `<class name>_<base name>` (in class names case and "_" do not count; the name
of the image's folder will do as well). This command writes
`<artifacts>/<dataset>/descriptions/released-<kind>.jsonl`, which training takes with
--config.descriptions.engine=released. All members of the release's groups are drawn, so groups need
--config.descriptions.group_members=drawn here and in training (the preset released_code has it).
The files say neither which images were a group nor the wording of the prompt: "prompt" is its name,
and changed images go unnoticed.
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
from lattec_jax.data.descriptions import Record, descriptions_path, to_line
from lattec_jax.runtime.cli import command, read_config
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.safe_read import read_text
from lattec_jax.runtime.text import escape_unprintable, print_escaped, sanitize

ENGINE = "released"
IMAGE, GROUP = "image", "group"
MAX_TEXT_BYTES = 2**17  # of a text file
LISTED = 10  # names that are printed of a kind of trouble
_FOLDER = re.compile(r"train_(?:(\d+)images_)?(.+)_(\d+)_(.+)_([48]bit)")
EXAMPLE = "generated_captions/train_classname_eurosat_77_llava-v1.6-mistral-7b_4bit"
_FORM = "train_<prompt>_<tokens>_<model>_4bit or train_<n>images_<prompt>_<tokens>_<model>_4bit"


@dataclasses.dataclass(frozen=True)
class Source:
    """What the folder's name says."""

    kind: str
    group_size: int | None  # None where the name does not say
    prompt: str
    model: str
    decoding: str

    @classmethod
    def parse(cls, folder: Path, kind: str | None) -> Source:
        """Read the folder's name; `kind` is what was asked for.

        Raises:
            DataError: it is no folder, or its name is not of the form.
            ConfigError: no such kind, or it contradicts the name.
        """
        if kind not in (None, IMAGE, GROUP):
            raise ConfigError(f"--kind: expected {IMAGE} or {GROUP}, found {kind!r}")
        if not folder.is_dir():
            raise DataError(f"--folder: expected a folder of text files, found none at {folder}")
        name = Path(os.path.abspath(folder)).name
        match = _FOLDER.fullmatch(name)
        if match is None:
            raise DataError(
                f"--folder: expected a folder named {_FORM}, found {name!r}; give it the name "
                "that the released code wrote it under"
            )
        size, prompt, tokens, model, bits = match.groups()
        if size and kind == IMAGE:
            raise ConfigError(f"--kind=image: {name!r} holds descriptions of groups of {size}")
        kind = kind or (GROUP if size or "describe_common" in prompt else IMAGE)
        decoding = f"{bits}, at most {tokens} new tokens"
        return cls(kind, int(size) if size else None, prompt, model, decoding)


@dataclasses.dataclass(frozen=True)
class Imported:
    """What was taken and what was not."""

    path: Path
    kind: str
    taken: int
    strangers: tuple[str, ...]  # text files of no image
    without: tuple[str, ...]  # images without a text file
    empty: tuple[str, ...]  # text files

    def report(self) -> str:
        """For a person."""
        lines = [f"{self.taken} {self.kind} descriptions -> {self.path}"]
        for what, names in (
            ("text files that belong to no training image", self.strangers),
            ("training images without a text file", self.without),
            ("empty text files", self.empty),
        ):
            lines.append(f"  {what}: {len(names)}{_listed(names)}")
        drawn = " --config.descriptions.group_members=drawn" if self.kind == GROUP else ""
        lines.append(f"  train on them with --config.descriptions.engine={ENGINE}{drawn}")
        return "\n".join(lines)


def import_released(config: ConfigDict, folder: Path, kind: str | None = None) -> Imported:
    """Write the texts of a folder in the form that training reads.

    Args:
        config: a resolved configuration.
        folder: that the released code wrote.
        kind: "image" or "group"; None: by the folder's name.

    Raises:
        ConfigError: the kind or the configured groups contradict the folder.
        DataError: the folder is not of the form, its texts cannot be told apart or read, or another
            file is there already.
    """
    source = Source.parse(folder, kind)
    path = _path(config, source)
    dataset = datasets.load(config)
    files = sorted(p for p in folder.iterdir() if p.suffix == ".txt" and p.is_file())
    belongs, strangers = _assign(dataset, files)
    if not belongs:
        raise DataError(
            f"none of the {len(files)} text files in {folder} belongs to a training image of "
            f"{dataset.name}{_listed(strangers)}; expected names such as "
            f"{_base(dataset.train.ids[0])}.txt. Is this the folder of that data set?"
        )
    texts = {image: _text(file) for image, file in belongs.items()}
    lines = [
        to_line(
            Record(
                image, source.kind, texts[image], ENGINE, source.model, source.prompt,
                source.decoding,
            )
        )
        for image in dataset.train.ids
        if texts.get(image)
    ]  # fmt: skip
    _write(path, b"".join(lines))
    return Imported(
        path,
        source.kind,
        len(lines),
        strangers,
        tuple(image for image in dataset.train.ids if image not in belongs),
        tuple(belongs[image].name for image, text in texts.items() if not text),
    )


def _path(config: ConfigDict, source: Source) -> Path:
    """Where training with the engine "released" looks. Raises ConfigError."""
    config = config.copy_and_resolve_references().unlock()
    settings = config.descriptions
    if source.kind == GROUP:
        if source.group_size not in (None, settings.group_size):
            raise ConfigError(
                f"the folder holds descriptions of groups of {source.group_size}, and "
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
    """The base name up to the first dot."""
    return image.rpartition("/")[2].partition(".")[0]


def _assign(dataset: Dataset, files: Iterable[Path]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The text file of each image that has one, and the files of no image. Raises DataError."""
    train = dataset.train
    owners: dict[tuple[str, str], dict[str, None]] = {}  # (prefix or "", base name) -> images
    for row, image in enumerate(train.ids):
        prefixes = {"", class_names.key(Path(image).parent.name)}
        if train.labels is not None:
            prefixes |= set(map(class_names.key, dataset.names[train.labels[row]]))
        for prefix in prefixes:
            owners.setdefault((prefix, _base(image)), {})[image] = None
    belongs: dict[str, Path] = {}
    strangers, shared = [], []
    for file in files:
        name = file.name.removesuffix(".txt")
        cuts = [i for i, character in enumerate(name) if character == "_"]
        forms = [("", name), *((class_names.key(name[:i]), name[i + 1 :]) for i in cuts)]
        images = list(dict.fromkeys(image for form in forms for image in owners.get(form, ())))
        if not images:
            strangers.append(file.name)
        elif len(images) > 1:
            shared.append(f"{file.name}: {', '.join(images[:LISTED])}")
        elif belongs.setdefault(images[0], file) != file:
            shared.append(f"{belongs[images[0]].name} and {file.name}: {images[0]}")
    if shared:
        raise DataError(
            f"{len(shared)} text files do not have one image each; expected names "
            "<class name>_<base name>.txt where base names repeat, and one file an image"
            f"{_listed(shared)}"
        )
    return belongs, tuple(strangers)


def _text(file: Path) -> str:
    """The lines of a file, one for each class in the released code's earlier form, as one."""
    try:
        return " ".join(sanitize(read_text(file, MAX_TEXT_BYTES)).split())
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{file} cannot be read: {reason}; allow it, or remove it") from error
    except ValueError as error:
        raise DataError(f"{file}: expected UTF-8 text, found {error}; remove the file") from error


def _write(path: Path, content: bytes) -> None:
    """Write, unless something else is there. Raises DataError."""
    if path.exists():
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        raise DataError(
            f"{path} holds other descriptions and is not overwritten; move it away to import these"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)


def _listed(names: Sequence[str]) -> str:
    """The first few, one a line."""
    more = f"\n    and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return "".join(f"\n    {escape_unprintable(name)}" for name in names[:LISTED]) + more


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_string("folder", "", "Folder of text files.", flag_values=values)
    flags.DEFINE_string(
        "kind", None, "image or group; not set: by the folder's name.", flag_values=values
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, values = read_config(argv, __doc__, define_flags, {"folder": EXAMPLE})
    print_escaped(import_released(config, Path(values.folder), values.kind).report())


if __name__ == "__main__":
    command(main)
