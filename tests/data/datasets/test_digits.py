"""The handwritten digits as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.data import datasets
from lattec_jax.data.datasets import digits


@pytest.fixture
def config(tmp_path: Path) -> ConfigDict:
    section = {"kind": "digits", "name": "digits", "train_fraction": 1.0, "split_seed": 0}
    return ConfigDict({"artifacts": str(tmp_path), "dataset": section})


def test_counts_and_no_overlap(config: ConfigDict) -> None:
    found = datasets.load(config)
    assert found.class_names[3] == "three"
    assert (len(found.train.ids), len(found.test.ids)) == (1000, 797)
    numbers = {name.split("/")[1] for name in found.train.ids + found.test.ids}
    assert len(numbers) == 1797
    assert (np.bincount(found.train.labels) == 100).all()
    assert np.bincount(found.test.labels).min() > 70


def test_files_hold_the_digits_in_17_gray_levels(config: ConfigDict) -> None:
    from sklearn.datasets import load_digits

    found, original = datasets.load(config), load_digits()
    for image, path, label in zip(
        found.test.ids[:20], found.test.paths, found.test.labels, strict=False
    ):
        index = int(Path(image).stem)
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (8, 8)
        np.testing.assert_array_equal(np.rint(pixels * (16 / 255)), original.images[index])
        assert label == original.target[index]


def test_files_are_written_once(config: ConfigDict) -> None:
    first = datasets.load(config)
    before = first.train.paths[0].stat().st_mtime_ns
    second = datasets.load(config)
    assert second.train.paths == first.train.paths
    assert second.train.paths[0].stat().st_mtime_ns == before
    assert not list(Path(config.artifacts).rglob("*.tmp"))


def test_an_interrupted_writer_leaves_no_set(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(digits.os, "replace", fail)
        datasets.load(config)
    assert not (Path(config.artifacts) / "digits" / "images").exists()
    assert all(path.is_file() for path in datasets.load(config).train.paths)
