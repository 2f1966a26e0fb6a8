"""Pseudo-labels on disk, and that labels of other weights, names or templates are refused."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from configs import common
from lattec_jax.data import pseudo_labels
from lattec_jax.runtime.errors import DataError, WeightsError

SOURCE = pseudo_labels.provenance("ab" * 32, [("cat", "tom"), ("dög",)], ["a photo of a {}."])
IDS = ["x/1.jpg", "ü.jpg", "z.jpg"]
LABELS = np.array([1, 0, 1], np.int64)
SCORES = np.array([0.9, 0.6, 0.1 + 0.2], np.float32)
MARGINS = np.array([0.8, 0.2, 1e-9], np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "artifacts" / "labels.jsonl"
    pseudo_labels.write(path, IDS, LABELS, SCORES, MARGINS, SOURCE)
    return path


def test_round_trip(path):
    found = pseudo_labels.read(path, ["z.jpg", "x/1.jpg"], SOURCE)
    assert found.ids == ("z.jpg", "x/1.jpg")
    assert found.labels.dtype == np.int32 and found.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(found.scores, SCORES[[2, 0]])
    np.testing.assert_array_equal(found.margins, MARGINS[[2, 0]])
    assert pseudo_labels.read(path, None, SOURCE).ids == tuple(IDS)
    assert sorted(p.name for p in path.parent.iterdir()) == ["labels.json", "labels.jsonl"]


def test_lines(path):
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
    assert line == {
        "image": "ü.jpg",
        "label": 0,
        "class": "cat",
        "score": float(SCORES[1]),
        "margin": float(MARGINS[1]),
    }
    assert json.loads(path.with_suffix(".json").read_text()) == SOURCE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights_sha256", "cd" * 32),
        ("class_names", ["dög", "cat"]),
        ("names", [["cat"], ["dög"]]),
        ("templates", ["a drawing of a {}."]),
    ],
)
def test_other_provenance(path, key, value):
    with pytest.raises(
        DataError, match=rf"are of other {key}: .*lattec_jax\.pseudo_label --config"
    ):
        pseudo_labels.read(path, IDS, {**SOURCE, key: value})


def test_missing(path):
    with pytest.raises(DataError, match=r"for 1 of 2 images, the first: 'new\.jpg'"):
        pseudo_labels.read(path, ["x/1.jpg", "new.jpg"], SOURCE)
    with pytest.raises(DataError, match=r"no pseudo-labels at .*lattec_jax\.pseudo_label"):
        pseudo_labels.read(path.with_name("none.jsonl"), IDS, SOURCE)


def without_provenance(path):
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        without_provenance,
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("{}"),
        lambda path: path.write_text("none\n"),
        lambda path: path.write_bytes(b" " * (2**20 + 1)),
        lambda path: path.write_bytes(path.read_bytes().splitlines()[0]),
        lambda path: path.unlink(),
    ],
)
def test_the_caller_says_what_is_done_about_it(path, spoil):
    spoil(path)
    for advice, arguments in (("make .* --config=...$", ()), ("remade here$", ("remade here",))):
        with pytest.raises(DataError, match=f"; {advice}") as refused:
            pseudo_labels.read(path, IDS, SOURCE, *arguments)
        assert ("make the" in str(refused.value)) == (not arguments)


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "a", "label": 1',
        '{"image": "a", "label": 2, "class": "cat", "score": 1, "margin": 1}',
        '{"image": "a", "label": true, "class": "cat", "score": 1, "margin": 1}',
        '{"image": "a", "label": 1, "class": "cat", "score": 1, "margin": 1}',
        '{"image": "a", "label": 1, "class": "dög", "score": null, "margin": 1}',
        '{"image": "a", "label": 1, "class": "dög", "margin": 1}',
        "[]",
    ],
)
def test_malformed_lines(path, line):
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"labels\.jsonl:4: expected a pseudo-label"):
        pseudo_labels.read(path, IDS, SOURCE)


def test_path():
    config = common.get_config()
    config.dataset.name = "birds"
    paths = {
        str(pseudo_labels.pseudo_labels_path(config, {**SOURCE, **changes}))
        for changes in (
            {},
            {"names": [["cat"], ["dög"]]},
            {"templates": []},
            {"weights_sha256": "f" * 64},
        )
    }
    assert len(paths) == 4
    assert all(p.startswith("artifacts/birds/pseudo_labels/") for p in paths)
    assert sum("/abababab-" in p for p in paths) == 3


def test_weights_sha256(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert pseudo_labels.weights_sha256(tmp_path) == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(WeightsError, match=r"config\.weights: .*model\.safetensors"):
        pseudo_labels.weights_sha256(tmp_path / "none")
