"""Builders of TensorFlow Datasets prepared as array_record, read without TensorFlow."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from lattec_jax import check_data
from lattec_jax.data import datasets
from lattec_jax.data.datasets import tfds, tfds_builder
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import partial_path
from tests.builders import BUILDERS, prepare
from tests.data.public_sets import SETS, content

MATCHED = [name for name in BUILDERS if name != "food101"]
COOP, OWN = "coop, inductive, last step", "tfds, inductive, last step"
OTHER = "coop split, images of {}/1.0.0, inductive, last step"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def arguments(name: str, *extra: str) -> list[str]:
    return [
        "x",
        f"--config=configs/{name}.py",
        "--config.dataset.kind=tfds",
        f"--config.dataset.tfds.builder={BUILDERS[name].name}",
        "--config.dataset.tfds.data_dir=tfds",
        *extra,
    ]


def config_of(name: str, *extra: str):
    return parse(arguments(name, *extra))[0]


def with_split_file(place: Path, name: str) -> Path:
    """Prepare the builder, and copy CoOp's split file without images to the data directory."""
    tree = prepare(name, place)
    split = place / "data" / SETS[name].root / SETS[name].split
    split.parent.mkdir(parents=True)
    shutil.copy(tree / SETS[name].split, split)
    return tree


@pytest.mark.parametrize("name", MATCHED)
def test_coops_split_is_applied(place, monkeypatch, name):
    tree = with_split_file(place, name)
    before = content(place)
    dataset = datasets.read(config_of(name))
    check_data.main(arguments(name))
    assert content(place) == before
    # Kind "coop" gives the same data set, except for the paths.
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tree.parent))
    files = datasets.read(parse(["x", f"--config=configs/{name}.py"])[0])
    assert dataset.class_names == files.class_names
    # These builders may alter images, so their accuracies are not comparable with the paper.
    assert (dataset.protocol, files.protocol) == (OTHER.format(BUILDERS[name].name), COOP)
    for one, other in ((dataset.train, files.train), (dataset.test, files.test)):
        assert one.ids == other.ids and list(one.labels) == list(other.labels)
    dataset.on_disk()
    for one, other in zip(dataset.train.paths, files.train.paths, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert all(path.is_file() for path in dataset.test.paths)
    assert "tensorflow" not in sys.modules


def test_the_protocol_of_an_unaltered_builder_is_coops(place, monkeypatch):
    with_split_file(place, "dtd")
    monkeypatch.setattr(tfds, "UNALTERED", {"small_dtd/1.0.0"})
    assert datasets.read(config_of("dtd")).protocol == COOP
    own = ["--config.dataset.split=", "--config.dataset.tfds.train=train"]
    assert datasets.read(config_of("dtd", *own)).protocol == OWN


def test_the_builders_own_splits(place):
    prepare("food101", place)
    dataset = datasets.read(config_of("food101"))
    assert dataset.protocol == OWN
    assert dataset.class_names == ("waffles", "bibimbap", "apple pie")
    assert dataset.train.ids[:2] == ("train/000000.jpg", "train/000001.jpg")
    assert (len(dataset.train.ids), len(dataset.test.ids)) == (12, 6)
    assert dataset.test.ids[0] == "validation/000000.jpg"
    dataset.on_disk()
    assert all(path.is_file() for path in (*dataset.train.paths, *dataset.test.paths))


def test_own_splits_on_request_and_parts_of_splits(place):
    prepare("eurosat", place)
    dataset = datasets.read(config_of("eurosat", "--config.dataset.split="))
    assert dataset.protocol == OWN
    assert dataset.class_names == ("sealake", "forest", "annualcrop")
    assert (len(dataset.train.ids), len(dataset.test.ids)) == (13, 5)
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    with pytest.raises(ConfigError, match=r"tfds\.test=tests: expected a split of small_eurosat.*"):
        datasets.read(
            config_of("eurosat", "--config.dataset.split=", "--config.dataset.tfds.test=tests")
        )


def test_suns_labels_are_read_from_the_inside_out(place):
    prepare("sun397", place)
    extra = ["--config.dataset.split=", "--config.dataset.tfds.train=train"]
    dataset = datasets.read(config_of("sun397", *extra))
    assert dataset.class_names == ("tree farm", "outdoor church", "alley")


def test_writing_resumes_after_an_interruption(place, monkeypatch):
    with_split_file(place, "dtd")
    opened, count = tfds_builder.partial_file, 0

    def interrupt(path: Path):
        nonlocal count
        count += 1
        if count == 6:  # as a kill leaves it
            partial_path(path, "0" * 16).write_bytes(b"half")
            raise KeyboardInterrupt
        return opened(path)

    monkeypatch.setattr(tfds_builder, "partial_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.load(config_of("dtd"))
    dataset = datasets.read(config_of("dtd"))
    there = [p for p in (*dataset.train.paths, *dataset.test.paths) if p.is_file()]
    assert len(there) == 5
    times = [path.stat().st_mtime_ns for path in there]
    datasets.load(config_of("dtd"))
    assert count == 6 + 13
    assert [path.stat().st_mtime_ns for path in there] == times
    assert not list(place.rglob("*.partial"))
    datasets.load(config_of("dtd"))
    assert count == 6 + 13


def test_names_are_noted_and_written_images_are_those_of_the_whole_set(place, monkeypatch):
    with_split_file(place, "dtd")
    fraction = datasets.load(config_of("dtd", "--config.dataset.train_fraction=0.5"))
    assert len(fraction.train.ids) == 6
    monkeypatch.setattr(tfds_builder, "open_split", None)  # nothing is read again
    whole = datasets.load(config_of("dtd"))
    assert set(fraction.train.paths) < set(whole.train.paths)
    assert all(path.is_file() for path in whole.train.paths)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index: [],
        lambda index: {},
        lambda index: None,
        lambda index: {**index, "examples": None},
        lambda index: {**index, "examples": index["examples"][:-1]},
        lambda index: {**index, "examples": [row[:-1] for row in index["examples"]]},
        lambda index: {**index, "examples": [[None] * 6, *index["examples"][1:]]},
        lambda index: {**index, "examples": [index["examples"][1], *index["examples"][1:]]},
        lambda index: {**index, "examples": [[*r[:3], 9, *r[4:]] for r in index["examples"]]},
        lambda index: {**index, "source": ["another"]},
        "{",
        "[" * 100_000,
        b"\xff",
    ],
)
def test_a_damaged_index_is_made_again(place, spoil):
    with_split_file(place, "dtd")
    whole = datasets.load(config_of("dtd"))
    (path,) = (place / "artifacts/dtd").rglob(tfds_builder.INDEX)
    good = path.read_bytes()
    if callable(spoil):
        spoil = json.dumps(spoil(json.loads(good)))
    path.write_bytes(spoil if isinstance(spoil, bytes) else spoil.encode())
    again = datasets.read(config_of("dtd"))
    assert (again.train.ids, again.train.paths) == (whole.train.ids, whole.train.paths)
    assert path.read_bytes() != good  # reading changes nothing
    again.on_disk()
    assert path.read_bytes() == good


def test_incomplete_images_are_written_again(place):
    with_split_file(place, "dtd")
    dataset = datasets.load(config_of("dtd"))
    images = [path.read_bytes() for path in dataset.train.paths]
    dataset.train.paths[0].write_bytes(b"")
    dataset.train.paths[1].write_bytes(images[1][:-1])
    datasets.load(config_of("dtd"))
    assert [path.read_bytes() for path in dataset.train.paths] == images


def test_entries_without_an_example_are_listed(place):
    with_split_file(place, "dtd")
    split = place / "data/dtd" / SETS["dtd"].split
    parts = json.loads(split.read_text())
    parts["test"] += [[f"banded/banded_{n}.jpg", 0, "banded"] for n in range(100, 112)]
    split.write_text(json.dumps(parts))
    with pytest.raises(DataError) as caught:
        datasets.read(config_of("dtd"))
    message = str(caught.value)
    assert "12 of 30 images" in message and "18 examples of small_dtd/1.0.0" in message
    assert message.count("\n  banded/") == 10 and message.endswith("and 2 more")
    assert '--config.dataset.split=""' in message
    # Examples that the split file does not name are left out.
    parts["test"] = parts["test"][:2]
    split.write_text(json.dumps(parts))
    assert len(datasets.read(config_of("dtd")).test.ids) == 2


def test_names_that_do_not_identify_images_are_refused(place):
    with_split_file(place, "caltech101")
    extra = "--config.dataset.tfds.file_name={image/file_name}"
    with pytest.raises(DataError, match="18 of 18 images"):
        datasets.read(config_of("caltech101", extra))
    split = place / "data/caltech-101" / SETS["caltech101"].split
    parts = json.loads(split.read_text())
    for rows in parts.values():
        for row in rows:
            row[0] = row[0].rpartition("/")[2]
    split.write_text(json.dumps(parts))
    with pytest.raises(DataError, match=r"3 examples of .* are named 'image_000\d\.jpg'"):
        datasets.read(config_of("caltech101", extra))
    with pytest.raises(ConfigError, match=r"has no feature name; it has .*image/file_name"):
        datasets.read(config_of("caltech101", "--config.dataset.tfds.file_name={name}.jpg"))


def test_numbers_that_mean_other_images_are_noticed_by_their_labels(place):
    with_split_file(place, "stanford_cars")
    split = place / "data/stanford_cars" / SETS["stanford_cars"].split
    parts = json.loads(split.read_text())
    first, last = parts["train"][0], parts["train"][-1]
    first[0], last[0] = last[0], first[0]
    split.write_text(json.dumps(parts))
    with pytest.raises(DataError, match="the names do not identify the images"):
        datasets.read(config_of("stanford_cars"))


def test_missing_parts_are_reported(place, monkeypatch):
    with pytest.raises(DataError, match=r"LATTECLIP_DATA_DIR[\s\S]*--config\.dataset\.split=\"\""):
        datasets.read(config_of("dtd"))
    (place / "data").mkdir()
    with pytest.raises(
        DataError, match=r"no split file .*dtd/split_zhou_D[\s\S]*\.split=\"\"[\s\S]*Prepare it"
    ):
        datasets.read(config_of("dtd"))
    no_split = "--config.dataset.split="
    with pytest.raises(
        DataError,
        match=r"found nothing\. Prepare it with\n  python -c \"import tensorflow_datasets as tfds; "
        r"tfds\.builder\('small_dtd', data_dir='tfds', file_format='array_record'\)",
    ):
        datasets.read(config_of("dtd", no_split))
    for builder in ("small_dtdd", "eurosat/nope", "eurosat:9.9.9"):
        with pytest.raises(ConfigError, match="knows no such builder"):
            datasets.read(config_of("dtd", no_split, f"--config.dataset.tfds.builder={builder}"))
    for name in ("fgvc_aircraft", "ucf101"):
        command = ["x", f"--config=configs/{name}.py", "--config.dataset.kind=tfds"]
        with pytest.raises(ConfigError, match=r"tfds\.builder is empty: TensorFlow Datasets has"):
            datasets.read(parse(command)[0])
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"tensorflow_datasets is not installed; pip install -e '"):
        datasets.read(config_of("dtd", no_split))


def test_a_builder_prepared_in_another_format(place):
    prepare("dtd", place)
    info = place / "tfds/small_dtd/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"found as tfrecord only\. Prepare it in another data_dir"):
        datasets.read(config_of("dtd", "--config.dataset.split="))
