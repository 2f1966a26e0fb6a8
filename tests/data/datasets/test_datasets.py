"""Fractions of the training images, and reading without writing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from lattec_jax.data import datasets
from lattec_jax.runtime.config import artifacts_dir, parse
from lattec_jax.runtime.errors import ConfigError
from tests.data.public_sets import content, make_tree


def digits(*extra: str):
    return parse(["x", "--config=configs/demo.py", *extra])[0]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def test_reading_writes_nothing_and_names_the_same(place):
    dataset = datasets.read(digits())
    assert content(place) == {} and list(place.iterdir()) == []
    written = datasets.load(digits())
    assert (written.train.ids, written.train.paths) == (dataset.train.ids, dataset.train.paths)
    assert all(path.is_file() for path in dataset.train.paths)


def test_fractions_are_nested(place):
    whole = datasets.read(digits())
    parts = {
        s: datasets.read(digits(f"--config.dataset.train_fraction={s}")) for s in (0.01, 0.2, 0.5)
    }
    assert [len(part.train.ids) for part in parts.values()] == [10, 200, 500]
    ids = [set(part.train.ids) for part in (*parts.values(), whole)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(ids))
    assert parts[0.2].protocol == whole.protocol + ", 200 of 1,000 training images"
    assert parts[0.2].test.ids == whole.test.ids
    label = dict(zip(whole.train.ids, whole.train.labels, strict=True))
    for part in parts.values():
        assert [label[image] for image in part.train.ids] == list(part.train.labels)
    other = datasets.read(
        digits("--config.dataset.train_fraction=0.2", "--config.dataset.split_seed=1")
    )
    assert set(other.train.ids) != set(parts[0.2].train.ids)


def test_a_fraction_does_not_depend_on_labels(place):
    for number in range(20):
        folder = place / "images" / ("cat" if number % 3 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").touch()
    command = ["x", "--config=configs/folder.py", "--config.dataset.name=a"]
    command += ["--config.dataset.root=images", "--config.dataset.train_fraction=0.5"]
    labeled = datasets.read(parse(command)[0])
    unlabeled = datasets.read(parse([*command, "--config.dataset.labels=none"])[0])
    assert unlabeled.train.labels is None
    assert labeled.train.ids == unlabeled.train.ids and len(labeled.train.ids) == 8


def test_a_fraction_has_at_least_two_images(place):
    make_tree(place / "data", "dtd")
    config = parse(["x", "--config=configs/dtd.py", "--config.dataset.train_fraction=1e-9"])[0]
    dataset = datasets.read(config)
    assert len(dataset.train.ids) == 2
    assert dataset.protocol == "coop, inductive, last step, 2 of 12 training images"


@pytest.mark.parametrize("fraction", ["0", "-0.5", "1.5", "nan"])
def test_a_fraction_out_of_range(place, fraction):
    with pytest.raises(ConfigError, match=r"config\.dataset\.train_fraction: expected a number"):
        datasets.read(digits(f"--config.dataset.train_fraction={fraction}"))


def test_fractions_have_separate_artifacts_and_common_images(place):
    fraction = "--config.dataset.train_fraction=0.2"
    config = digits(fraction)
    assert artifacts_dir(config) == Path("artifacts/digits/fraction-0.2")
    assert artifacts_dir(digits()) == Path("artifacts/digits")
    other = [
        digits(fraction, "--config.dataset.split_seed=3"),
        digits("--config.dataset.train_fraction=0.25"),
        digits("--config.dataset.name=digits-fraction-0.2"),
        digits(fraction, "--config.dataset.name=digits-fraction-0.2"),
    ]
    assert len({artifacts_dir(each) for each in (config, digits(), *other)}) == 6
    datasets.load(config)
    assert len(list((place / "artifacts/digits/images").rglob("*.png"))) == 1797
    assert not artifacts_dir(config).exists()
