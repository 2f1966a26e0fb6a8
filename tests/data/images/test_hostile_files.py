"""Special files in the place of images and lists, endless lines, deep JSON, control characters."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from PIL import Image

from captioning.shards import Shard, ShardWriter, shard_path
from lattec_jax.data import datasets, descriptions
from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images import image_cache
from lattec_jax.data.images.content_hashes import UNREADABLE, content_hashes
from lattec_jax.data.images.preprocess import (
    Preprocess,
    UnreadableImage,
    image_size,
    open_image,
)
from lattec_jax.runtime import safe_read
from lattec_jax.runtime.cli import command
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.text import REPLACEMENT

PREPROCESS = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def never_waits():
    """A read that waits for ever fails; none of them takes a second."""

    def refuse(number, frame):
        raise AssertionError("still waiting")

    before = signal.signal(signal.SIGALRM, refuse)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fifo(path) -> None:
    os.mkfifo(path)


def endless(path) -> None:
    path.symlink_to("/dev/zero")


special = pytest.mark.parametrize("make", [fifo, endless])


def folder_of(root, *extra: str):
    arguments = ["--config=configs/folder.py", "--config.dataset.name=x", "--config.dataset.test="]
    config, _ = parse(["x", *arguments, f"--config.dataset.root={root}", *extra])
    return datasets.read(config)


@pytest.fixture
def folder(tmp_path):
    """Four images of two classes."""
    root = tmp_path / "set"
    for number in range(4):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(root / "ab"[number % 2] / f"{number}.png")
    return root


@special
def test_images_that_are_no_regular_files_are_unreadable(make, folder):
    make(folder / "a" / "special.png")
    for read in (open_image, image_size):
        with pytest.raises(UnreadableImage, match="expected a regular file, found a "):
            read(folder / "a" / "special.png")
    train = folder_of(folder, "--config.dataset.held_out_fraction=0").train
    assert "a/special.png" in train.ids
    caches = image_cache.open_image_caches(
        train, folder.parent / "image_caches", PREPROCESS, 8, max_unreadable_fraction=0.2
    )
    failed = caches.training.failed
    assert [entry["image"] for entry in failed] == ["a/special.png"]
    assert content_hashes([folder / "a" / "special.png"], folder.parent / "c.json") == [UNREADABLE]


def test_images_of_more_bytes_than_are_read_are_unreadable(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(safe_read.MAX_FILE_BYTES + 1)
    with pytest.raises(UnreadableImage, match=r"has 1,073,741,825 bytes, more than"):
        open_image(tmp_path / "huge.png")
    assert content_hashes([tmp_path / "huge.png"], tmp_path / "cache.json") == [UNREADABLE]


@special
def test_lists_that_are_no_regular_files_are_refused(make, folder, tmp_path):
    names = tmp_path / "names.txt"
    make(names)
    with pytest.raises(DataError, match=r"names\.txt: expected a regular file"):
        folder_of(folder, f"--config.dataset.class_names={names}")
    texts = tmp_path / "texts.jsonl"
    make(texts)
    with pytest.raises(DataError, match=r"texts\.jsonl: expected a regular file"):
        descriptions.read([texts], ["image"], ["a"])


def test_a_shard_that_is_a_fifo_is_refused(tmp_path):
    path = shard_path(tmp_path / "x.jsonl", Shard(0, 1))
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(DataError, match="expected a regular file, found a FIFO"):
        ShardWriter(path)


@pytest.mark.parametrize(
    "csv, says",
    [
        ("image,label\n" + "x" * 200_000 + ",a\n", "line 2: expected comma-separated values"),
        ("x" * 200_000 + ",label\n", "line 1: expected comma-separated values"),
        ('image,label\n"' + "x\n" * 200_000, "is a quotation mark not closed"),
        ("image,label\n" + "x" * 2_000_000, r"line 2 has more than 1,048,576 characters"),
        ("image,label\na/0.png," + "9" * 5000 + "\n", "expected a class name or an index"),
    ],
)
def test_long_fields_of_a_csv_are_refused(csv, says, folder, tmp_path):
    (tmp_path / "labels.csv").write_text(csv)
    with pytest.raises(DataError, match=says) as refused:
        folder_of(folder, f"--config.dataset.labels={tmp_path / 'labels.csv'}")
    assert "labels.csv" in str(refused.value) and len(str(refused.value)) < 1000


DEEP = "[" * 100_000 + "]" * 100_000


def test_deep_and_endless_lines_of_descriptions_are_refused(tmp_path):
    path = tmp_path / "texts.jsonl"
    record = json.dumps({"image": "a", "kind": "image", "text": "b"})
    path.write_text(f'{record}\n{{"image": {DEEP}}}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl:2: .*nested more than 64 deep"):
        list(descriptions.records(path))
    path.write_text(f"{record}\n" + "x" * 2_000_000)
    with pytest.raises(DataError, match=r"texts\.jsonl: line 2 has more than 1,048,576 bytes"):
        list(descriptions.records(path))


def test_a_deep_content_cache_is_made_again(folder, tmp_path):
    images, cache = [folder / "a" / "0.png"], tmp_path / "content.json"
    expected = content_hashes(images, cache)
    for content in (DEEP, "[]", json.dumps({str(images[0]): [1, 2, {}]})):
        cache.write_text(content)
        assert content_hashes(images, cache) == expected


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda index: [], "found 'list'"),
        (lambda index: index | {"ids": [1] * 4}, "expected settings, a list of ids"),
        (lambda index: index | {"failed": [{"image": "x"}]}, "expected settings, a list of ids"),
        (lambda index: index | {"settings": None}, "expected settings, a list of ids"),
        (lambda index: index | {"settings": {"preprocess": {}}}, "is damaged"),
        (lambda index: index | {"ids": [*index["ids"][:3], "other"]}, "does not name the 4"),
    ],
)
def test_an_index_with_wrong_types_or_ids_is_damaged(change, says, folder, tmp_path):
    split = folder_of(folder, "--config.dataset.held_out_fraction=0").train
    caches = image_cache.open_image_caches(split, tmp_path / "image_caches", PREPROCESS, None)
    path = caches.evaluation.directory / "index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=says):
        image_cache.open_image_caches(split, tmp_path / "image_caches", PREPROCESS, None)


def test_an_array_header_that_asks_for_much_is_damaged(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    split = Split(("a.png",), (tmp_path / "a.png",), None)
    caches = image_cache.open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 8)
    training = caches.training.directory
    for array, old, new in (
        ("sizes.npy", b"(1, 2)", b"(999999999999, 2)"),
        ("sizes.npy", b"<i4", b"<f4"),
        ("pixels.npy", b"(1, 8, 8, 3)", b"(1, 3, 8, 8)"),
        ("pixels.npy", b"'shape'", b"'shape"),
    ):
        content = (training / array).read_bytes()
        header = content[:128].replace(old, new)
        (training / array).write_bytes(header[: 127 + len(new) - len(old)][:128] + content[128:])
        with pytest.raises(DataError, match="is damaged"):
            image_cache.open_image_cache(training)
        (training / array).write_bytes(content)


def test_texts_of_descriptions_are_valid_unicode_and_ids_stay(tmp_path):
    path = tmp_path / "texts.jsonl"
    text = "a \ud83d\x1b[31m cat\u0000, cafe\u0301"
    path.write_text(json.dumps({"image": "\udcff.png", "kind": "image", "text": text}) + "\n")
    (record,) = descriptions.records(path)
    assert record.text == f"a {REPLACEMENT}[31m cat, caf\xe9"
    assert record.image == "\udcff.png"
    path.write_bytes(descriptions.to_line(record))
    assert list(descriptions.records(path)) == [record]


@pytest.mark.parametrize("name", ["cat\x1b[31m", "cat\x00", "cat\u2028dog", "cat\x85dog"])
def test_class_names_with_control_characters_are_refused(name, folder, tmp_path):
    (tmp_path / "names.txt").write_text(f"a\n{name}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"names\.txt, line 2: .* U\+"):
        folder_of(folder, f"--config.dataset.class_names={tmp_path / 'names.txt'}")


def test_class_folders_with_control_characters_are_refused(folder):
    (folder / "b").rename(folder / "b\x1b]0;title\x07")
    with pytest.raises(DataError, match=r"control characters, found U\+001B"):
        folder_of(folder)


def test_what_a_command_prints_of_others_reaches_no_terminal(capsys, monkeypatch):
    import logging

    def main(argv):
        logging.getLogger("lattec_jax.data").warning("left out \x1b]0;\x07 %s", "\udcff")
        raise DataError("found \x1b[31m" + "x" * 5_000_000 + "\ud83d, remove it")

    monkeypatch.setattr(sys, "argv", ["x"])
    # As in a process in which nothing has configured logging.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(SystemExit) as ended:
        command(main)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == r"warning: left out \x1b]0;\x07 \udcff"
    assert lines[1].startswith(r"error: found \x1b[31mxxx") and lines[1].endswith(
        r"\ud83d, remove it"
    )
    assert len(lines) == 2 and len(lines[1]) < 5000
