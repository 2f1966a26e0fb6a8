"""FGVC Aircraft's lists, and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest

from lattec_jax.data import datasets
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import DataError
from tests.data.public_sets import make_tree


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path))
    return make_tree(tmp_path, "fgvc_aircraft")


def read():
    return datasets.read(parse(["x", "--config=configs/fgvc_aircraft.py"])[0])


def test_train_and_val_are_the_training_images(root):
    dataset = read()
    assert dataset.class_names == ("707-320", "cessna 172", "f/a-18")
    assert dataset.train.ids[:2] == ("0034301.jpg", "0034302.jpg")
    assert dataset.train.ids[9:] == ("0034304.jpg", "1045754.jpg", "1825584.jpg")
    np.testing.assert_array_equal(dataset.train.labels, [0] * 3 + [1] * 3 + [2] * 3 + [0, 1, 2])
    assert dataset.test.paths[0] == root / "images" / "0034305.jpg"
    assert dataset.protocol == "coop, inductive, last step"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("images_variant_val.txt", "0034304", r"_val\.txt, line 4: expected an image and one of"),
        ("images_variant_test.txt", "1 Boeing 999", "found '1 Boeing 999'"),
        ("images_variant_train.txt", "9999999 Cessna 172", r"1 of 19 .*\n    9999999\.jpg"),
        ("images_variant_test.txt", "0034301 707-320", "training must not see test images"),
    ],
)
def test_lists_that_are_wrong(root, file, line, message):
    with open(root / file, "a", encoding="utf-8") as lines:
        lines.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        read()


def test_all_wrong_lists_are_named_at_once(root):
    for part in ("train", "test"):
        (root / f"images_variant_{part}.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"UTF-8 in \S*_train\.txt[\s\S]*UTF-8 in \S*_test\.txt"):
        read()
