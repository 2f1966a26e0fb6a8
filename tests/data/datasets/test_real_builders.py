"""The configurations' settings for TensorFlow Datasets, compared with the installed builders.

The builders' classes need neither their data nor TensorFlow.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing

import pytest
import tensorflow_datasets as tfds

from lattec_jax.data.datasets import tfds as reader
from lattec_jax.runtime.config import parse
from tests.builders import BUILDERS

# The builders that tests/builders.py imitates, by set.
REAL = {
    "eurosat": "eurosat/rgb",
    "sun397": "sun397/tfds",
    "dtd": "dtd",
    "flowers102": "oxford_flowers102",
    "oxford_pets": "oxford_iiit_pet",
    "caltech101": "caltech101",
    "stanford_cars": "cars196",
    "food101": "food101",
}
ALTERING = {"sun397", "oxford_pets"}


def builder_of(name: str, folder: object) -> typing.Any:
    """The installed builder that the configuration of a set names."""
    settings = parse(["x", f"--config=configs/{name}.py"])[0].dataset.tfds
    assert settings.builder == REAL[name]
    builder = tfds.builder(settings.builder, data_dir=folder)
    assert "tensorflow" not in sys.modules
    return builder


@pytest.mark.parametrize("name", REAL)
def test_features_that_the_configuration_names(tmp_path, name):
    features = builder_of(name, tmp_path).info.features
    pattern = parse(["x", f"--config=configs/{name}.py"])[0].dataset.tfds.file_name
    keys = set(re.findall(r"{(.*?)}", pattern))
    assert keys - {"split"} <= set(features)
    assert bool(keys) == (name != "food101")
    assert isinstance(features["image"], tfds.features.Image)
    assert isinstance(features["label"], tfds.features.ClassLabel)
    for key in keys - {"split", "label"}:
        assert isinstance(features[key], tfds.features.Text)
    # The small builder of the tests gives the same names.
    assert {BUILDERS[name].text} - {""} == keys - {"split", "label"}


@pytest.mark.parametrize("name", REAL)
def test_splits_that_the_configuration_names(tmp_path, name):
    source = inspect.getsource(inspect.getmodule(type(builder_of(name, tmp_path))))
    named = set(re.findall(r"""(?:name=|^ +)["'](\w+)["'](?:,|: self)""", source, re.MULTILINE))
    named |= {split.lower() for split in re.findall(r"tfds\.Split\.(\w+)", source)}
    settings = parse(["x", f"--config=configs/{name}.py"])[0].dataset.tfds
    for spec in (settings.train, settings.test):
        for part in spec.split("+"):
            assert part.partition("[")[0] in named


@pytest.mark.parametrize("name", [name for name in REAL if name != "food101"])
def test_builders_that_store_files_unchanged(tmp_path, name):
    builder = builder_of(name, tmp_path)
    assert (builder.info.full_name in reader.UNALTERED) == (name not in ALTERING)
    source = inspect.getsource(inspect.getmodule(type(builder)))
    # Paths, or bytes as they were read, are stored as they are; pixels are encoded.
    altering = re.findall(r"decode_image|encode_jpeg|imencode|imdecode|resize\(|\.save\(", source)
    assert bool(altering) == (name in ALTERING)
    if name not in ALTERING:
        image = re.findall(r"""["']image["']: (.*),$""", source, re.MULTILINE)
        stored = [value for value in image if not value.startswith("tfds.")]
        assert stored and all(
            value in ("filename", "image", "image_path") or value.startswith("os.path.join(")
            for value in stored
        )
    encode = tfds.features.Image().encode_example
    (tmp_path / "a.jpg").write_bytes(b"bytes of a file")
    assert encode(str(tmp_path / "a.jpg")) == b"bytes of a file"


def test_every_unaltered_builder_is_one_of_the_configurations(tmp_path):
    names = {builder_of(name, tmp_path).info.full_name for name in REAL}
    assert names >= reader.UNALTERED
