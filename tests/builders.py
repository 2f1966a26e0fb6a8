"""Small builders for TensorFlow Datasets that imitate those of the public sets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds
from PIL import Image

from tests.data.public_sets import SETS, make_tree, rows


class SmallBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder of the tree of one set. Subclasses define file names and splits."""

    VERSION = tfds.core.Version("1.0.0")
    set_name = ""
    text = ""  # the feature that stores the file name
    splits = ("train", "test")
    files: ClassVar[dict[str, Path]] = {}  # path below the image folder -> file of the tree
    code_path = None  # no checksums of downloads are stored with this module

    def spell(self, path: str) -> str:
        """Return the builder's name of a file."""
        return path

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=self.labels()),
            # As in the pets' builder; it must not be decoded.
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1)),
        }
        if self.text:
            features[self.text] = tfds.features.Text()
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    @classmethod
    def labels(cls) -> list[str]:
        """Return label names, in another order than in the split file."""
        patterns = [pattern for pattern, _, _ in SETS[cls.set_name].classes]
        return [pattern.rpartition("/")[0].lower() or name(pattern) for pattern in patterns[::-1]]

    def _split_generators(self, manager: tfds.download.DownloadManager) -> dict:
        parts = rows(SETS[self.set_name])
        train, test = parts["train"] + parts["val"], parts["test"]
        if len(self.splits) == 1:
            return {self.splits[0]: self._generate_examples(train + test)}
        own = dict(zip(self.splits, (train, test), strict=True))
        return {split: self._generate_examples(part) for split, part in own.items()}

    def _generate_examples(self, part: list[list]) -> dict:
        mask = io.BytesIO()
        Image.new("L", (4, 4)).save(mask, "PNG")
        for path, label, _ in part:
            example = {
                "image": io.BytesIO(self.files[path].read_bytes()),
                "label": len(self.labels()) - 1 - label,
                "segmentation_mask": io.BytesIO(mask.getvalue()),
            }
            if self.text:
                example[self.text] = self.spell(path)
            yield path, example


def name(pattern: str) -> str:
    """Return the class name in the name of a file without a class folder."""
    return pattern.rpartition("_")[0]


class SmallEurosat(SmallBuilder):
    """One split, base names."""

    set_name, text, splits = "eurosat", "filename", ("train",)

    def spell(self, path: str) -> str:
        return path.rpartition("/")[2]

    @classmethod
    def labels(cls) -> list[str]:
        return ["SeaLake", "Forest", "AnnualCrop"]


class SmallSun(SmallBuilder):
    """Paths with a slash in front; labels are paths as well."""

    set_name, text = "sun397", "file_name"

    def spell(self, path: str) -> str:
        return f"/{path}"

    @classmethod
    def labels(cls) -> list[str]:
        return [f"/{label}" for label in super().labels()]


class SmallDtd(SmallBuilder):
    """Paths."""

    set_name, text = "dtd", "file_name"


class SmallFlowers(SmallBuilder):
    """Files without class folders."""

    set_name, text = "flowers102", "file_name"

    @classmethod
    def labels(cls) -> list[str]:
        return ["blackberry lily", "bird of paradise", "pink primrose"]


class SmallPets(SmallBuilder):
    """Files without class folders."""

    set_name, text = "oxford_pets", "file_name"


class SmallCaltech(SmallBuilder):
    """Base names that repeat in every class."""

    set_name, text = "caltech101", "image/file_name"

    def spell(self, path: str) -> str:
        return path.rpartition("/")[2]


class SmallCars(SmallBuilder):
    """Numbers that repeat in both splits."""

    set_name, text = "stanford_cars", "id"

    def spell(self, path: str) -> str:
        return path.rpartition("/")[2].removesuffix(".jpg")

    @classmethod
    def labels(cls) -> list[str]:
        return ["Ram Cargo Van 2012", "Bugatti Veyron 2009", "AM General Hummer SUV 2000"]


class SmallFood(SmallBuilder):
    """No file names; the test images are called validation."""

    set_name, splits = "food101", ("train", "validation")


BUILDERS = {builder.set_name: builder for builder in SmallBuilder.__subclasses__()}


def prepare(name: str, folder: Path, file_format: str = "array_record") -> Path:
    """Prepare the builder of a set in `folder / "tfds"`; return the tree of its files."""
    root = make_tree(folder / "source", name)
    images = root / SETS[name].images
    builder = BUILDERS[name]
    builder.files = {p.relative_to(images).as_posix(): p for p in images.rglob("*.jpg")}
    builder(data_dir=folder / "tfds", file_format=file_format).download_and_prepare()
    return root
