"""A data set from any folder of images.

    root/                     root/                        root/
      train/cat/1.jpg           cat/1.jpg                    a.jpg
      train/dog/2.png           dog/2.png                    b.webp
      test/cat/3.jpg          (a fraction is held out)     + --config.dataset.class_names=names.txt

Ids are POSIX paths relative to the root. Class names and labels: `folder_labels`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.datasets import class_names
from lattec_jax.data.datasets.class_names import key
from lattec_jax.data.datasets.dataset import Dataset, Split
from lattec_jax.data.datasets.error_messages import list_inline
from lattec_jax.data.datasets.folder_labels import (
    find_path,
    names_by_class,
    read_class_names,
    read_labels,
)
from lattec_jax.data.datasets.image_files import Images, images_of
from lattec_jax.runtime.errors import ConfigError, DataError


def read_folder(config: ConfigDict) -> Dataset:
    """Read the folder data set that `config.dataset` describes.

    Raise DataError if folders, lists, class names or labels are missing or contradict each other.
    """
    settings = config.dataset
    root = _root(settings.root)
    given_train = _source(root, settings.train, "train")
    given_test = _source(root, settings.test, "test")
    sources = {"train": given_train or root, "test": given_test or given_train or root}
    train = images_of(root, sources["train"], "train")
    test = images_of(root, given_test, "test") if given_test else {}
    if given_test and given_test.is_dir() and sources["train"] in given_test.parents:
        train = {image: path for image, path in train.items() if image not in test}
    _refuse_class_as_split(root, settings, given_train, given_test)
    names = names_by_class(root, settings.class_names, sources["train"], train)
    protocol = "own test images, inductive, last step"
    if not test:
        fraction, seed = settings.held_out_fraction, settings.split_seed
        train, test = _hold_out(train, fraction, seed)
        protocol = f"{fraction:g} held out (seed {seed}), inductive, last step"
    if not test:
        protocol = "no test images, inductive, last step"
    if not train:
        raise DataError(
            f"no training images are left below {root}: the test part contains all {len(test)}; "
            "check config.dataset.train and config.dataset.test"
        )
    parts = {"train": train, "test": test}
    labels = read_labels(root, settings.labels, parts, sources, names)
    train_split, test_split = (
        Split(tuple(images), tuple(images.values()), labels[part], f"config.dataset.{part}")
        for part, images in parts.items()
    )
    return Dataset(
        settings.name,
        tuple(synonyms[0] for synonyms in names),
        train_split,
        test_split if test else None,
        protocol,
        tuple(synonyms[1:] for synonyms in names),
        locations=(("images", root),),
    )


def _root(setting: str) -> Path:
    if not setting:
        raise ConfigError(
            "config.dataset.root is empty; set --config.dataset.root=DIR, the folder of images"
        )
    root = Path(setting).expanduser()
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise DataError(
            f"config.dataset.root: expected a folder of images, but {root.absolute()} {what}"
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"config.dataset.root: no permission to look into {root.absolute()}")
    return root


def _source(root: Path, setting: str, default: str) -> Path | None:
    """Return the folder or list of a split.

    None if the setting is empty, or is the default and the root has no folder of that name.
    """
    if not setting:
        return None
    found = find_path(root, setting)
    if setting == default:  # never a folder of that name in the working directory
        found = root / setting
        if not os.path.exists(found):
            return None
    if found is None:
        raise DataError(
            f"config.dataset.{default}: expected a folder or a .txt list, but there is no "
            f"{setting} in {root.absolute()}; the root contains "
            f"{list_inline(sorted(os.listdir(root)))}"
        )
    if not found.is_dir() and found.suffix.lower() != ".txt":
        raise DataError(
            f"config.dataset.{default}: expected a folder or a .txt list, found {found}"
        )
    return found


def _refuse_class_as_split(
    root: Path, settings: ConfigDict, train: Path | None, test: Path | None
) -> None:
    """Raise DataError if "train" is a class: its folder is beside those of other classes."""
    if not settings.class_names:
        return
    known = class_names.labels_by_key(read_class_names(root, settings.class_names))
    for part, source in (("train", train), ("test", test)):
        if source is None or source.parent != root or key(source.name) not in known:
            continue
        classes = [p.name for p in sorted(root.iterdir()) if p.is_dir() and key(p.name) in known]
        if len(classes) > 1:
            raise DataError(
                f"{source} would be the {part} folder, but {source.name!r} is one of the class "
                f"names, as is {next(c for c in classes if c != source.name)!r} beside it. If it "
                f'is a class, set --config.dataset.{part}=""; if not, rename one of the two'
            )


def _hold_out(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Split images into training and test images by a hash of seed and id.

    The order of the hashes does not change when images are added, so most stay in their part.
    """
    ids = list(images)
    count = min(max(1, round(fraction * len(ids))), len(ids) - 1) if fraction else 0
    test = set(sorted(ids, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())[:count])
    train = {image: images[image] for image in ids if image not in test}
    return train, {image: images[image] for image in ids if image in test}
