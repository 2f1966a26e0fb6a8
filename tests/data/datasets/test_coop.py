"""CoOp's layout: split files, their class names, and what is wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from lattec_jax.data import datasets
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError, DataError

SPLIT = {
    "train": [["AnnualCrop/a_1.jpg", 0, "Annual_Crop Land"], ["Forest/f_1.jpg", 1, "Forest"]],
    "val": [["Forest/f_2.jpg", 1, "Forest"]],
    "test": [["AnnualCrop/a_2.jpg", 0, "Annual_Crop Land"], ["Forest/f_3.jpg", 1, "Forest"]],
}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """EuroSAT's layout with five images."""
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path))
    root = tmp_path / "eurosat"
    for rows in SPLIT.values():
        for path, _, _ in rows:
            (root / "2750" / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(root / "2750" / path)
    (root / "split_zhou_EuroSAT.json").write_text(json.dumps(SPLIT), encoding="utf-8")
    return root


def eurosat() -> ConfigDict:
    return parse(["train", "--config=configs/eurosat.py"])[0]


def test_train_and_val_are_the_training_images(tree):
    dataset = datasets.load(eurosat())
    assert dataset.class_names == ("annual crop land", "forest")
    assert dataset.train.ids == ("AnnualCrop/a_1.jpg", "Forest/f_1.jpg", "Forest/f_2.jpg")
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 1])
    np.testing.assert_array_equal(dataset.test.labels, [0, 1])
    assert all(path.is_file() for path in (*dataset.train.paths, *dataset.test.paths))
    assert dataset.protocol == "coop, inductive, last step"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("val"), "expected a list 'val'"),
        (lambda s: s["train"].append(["x.jpg", "0", "Forest"]), r"train\[2\]: expected \[path"),
        (lambda s: s["test"].append(["x.jpg", 0, "Forest"]), "label 0 is 'Annual_Crop Land'"),
        (lambda s: s["test"].append(["x.jpg", 3, "River"]), r"found none of \[2\]"),
        (lambda s: s["test"].append(["x.jpg", 1, "Forest"]), r"1 of 6 images.*\n    x\.jpg"),
        (lambda s: s["test"].append(["../x.jpg", 1, "Forest"]), "a path below the image folder"),
        (lambda s: s["test"].append(s["train"][0]), "training must not see test images"),
    ],
)
def test_a_split_file_that_is_wrong_is_refused_by_name(tree, change, message):
    split = json.loads(json.dumps(SPLIT))
    change(split)
    (tree / "split_zhou_EuroSAT.json").write_text(json.dumps(split), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        datasets.load(eurosat())


def test_without_a_data_directory(tree, monkeypatch):
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tree / "nowhere"))
    with pytest.raises(DataError, match=r"is .*nowhere, which is not a folder"):
        datasets.load(eurosat())
    monkeypatch.delenv("LATTECLIP_DATA_DIR")
    with pytest.raises(DataError, match=r"\$LATTECLIP_DATA_DIR is not set"):
        datasets.load(eurosat())


def test_without_a_split_file_named(tree):
    config = parse(["train", "--config=configs/eurosat.py", "--config.dataset.split="])[0]
    with pytest.raises(ConfigError, match=r"config\.dataset\.split is empty"):
        datasets.load(config)


def test_a_split_file_that_is_not_json(tree):
    (tree / "split_zhou_EuroSAT.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        datasets.load(eurosat())
