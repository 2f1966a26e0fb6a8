"""The image caches: what is in them, what is left out, and that none is ever half there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images import decoder, image_cache_writer
from lattec_jax.data.images.image_cache import open_image_cache, open_image_caches
from lattec_jax.data.images.preprocess import Preprocess
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import partial_directory, partial_path

PREPROCESS = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
SIZES = [(40, 20), (20, 40), (8, 6), (64, 64), (33, 10)]  # width, height


def write_images(root: Path, sizes=SIZES) -> Split:
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(sizes):
        paths.append(root / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(paths[-1])
    return Split(tuple(path.name for path in paths), tuple(paths), None)


@pytest.fixture
def split(tmp_path) -> Split:
    return write_images(tmp_path / "images")


def left_overs(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


def test_contents(split, tmp_path):
    evaluation, training = open_image_caches(
        split, tmp_path / "image_caches", PREPROCESS, max_side=32
    )
    assert evaluation.ids == training.ids == split.ids
    assert isinstance(evaluation.pixels, np.memmap) and evaluation.sizes is None
    assert evaluation.pixels.shape == (5, 16, 16, 3)
    assert training.pixels.shape == (5, 32, 32, 3)
    assert training.sizes.tolist() == [[16, 32], [32, 16], [6, 8], [32, 32], [10, 32]]
    assert training.sizes.dtype == np.int32
    for row, path in enumerate(split.paths):
        image = Image.open(path)
        np.testing.assert_array_equal(evaluation.pixels[row], PREPROCESS.pixels(image))
        height, width = training.sizes[row]
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(training.pixels[row, :height, :width], np.asarray(image))
        assert not training.pixels[row, height:].any()
        assert not training.pixels[row, :, width:].any()
    assert not left_overs(tmp_path / "image_caches")


def test_without_bound_and_without_training_cache(split, tmp_path):
    training = open_image_caches(split, tmp_path / "image_caches", PREPROCESS, max_side=0).training
    assert training.pixels.shape == (5, 64, 64, 3)
    np.testing.assert_array_equal(training.sizes[:, ::-1], SIZES)
    assert open_image_caches(split, tmp_path / "other", PREPROCESS, max_side=None).training is None
    assert len(list((tmp_path / "other").iterdir())) == 1


def test_entries_are_as_tight_as_the_images(tmp_path):
    split = write_images(tmp_path / "images", [(40, 20), (60, 31)])
    caches = open_image_caches(split, tmp_path / "image_caches", PREPROCESS, max_side=50)
    assert caches.training.pixels.shape == (2, 26, 50, 3)


def test_each_file_is_decoded_once_and_caches_are_reused(split, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        decoder,
        "open_image",
        lambda path, real=decoder.open_image: (decoded.append(Path(path)), real(path))[1],
    )

    def directories(split: Split, preprocess: Preprocess, max_side: int) -> tuple[Path, Path]:
        caches = open_image_caches(split, tmp_path / "image_caches", preprocess, max_side)
        return caches.evaluation.directory, caches.training.directory

    evaluation, training = directories(split, PREPROCESS, 32)
    assert sorted(decoded) == sorted(split.paths)
    assert directories(split, PREPROCESS, 32) == (evaluation, training)
    assert len(decoded) == 5
    # Another model shares the training cache.
    wide = Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    other = directories(split, wide, 32)
    assert other[1] == training and other[0] != evaluation
    # An image that was modified, another bound, and one image less make new image caches.
    Image.new("RGB", (9, 9)).save(split.paths[0])
    changed = directories(split, PREPROCESS, 32)
    assert changed[1] != training and changed[0] != evaluation
    assert open_image_cache(changed[1]).sizes[0].tolist() == [9, 9]
    assert directories(split, PREPROCESS, 31)[1] != changed[1]
    fewer = Split(split.ids[1:], split.paths[1:], None)
    assert directories(fewer, PREPROCESS, 32)[1] != changed[1]


def test_unreadable_images_are_left_out_and_named(split, tmp_path, caplog):
    split.paths[1].write_bytes(split.paths[1].read_bytes()[:200])
    split.paths[4].write_text("no image")
    split.paths[2].unlink()
    caches = open_image_caches(
        split, tmp_path / "image_caches", PREPROCESS, 32, max_unreadable_fraction=0.6
    )
    for opened in caches:
        assert opened.ids == ("0.png", "3.png")
        assert len(opened.pixels) == 2
        reasons = {entry["image"]: entry["reason"] for entry in opened.failed}
        assert list(reasons) == ["1.png", "2.png", "4.png"]
        assert "not an image" in reasons["4.png"] and "No such file" in reasons["2.png"]
    np.testing.assert_array_equal(
        caches.evaluation.pixels[1], PREPROCESS.pixels(Image.open(split.paths[3]))
    )
    assert caches.training.sizes.tolist() == [[16, 32], [32, 32]]
    assert "3 of 5 images cannot be read" in caplog.text
    (listed,) = re.findall(r"(\S+index\.json) lists them all", caplog.text)
    failed = json.loads(Path(listed).read_text(encoding="utf-8"))["failed"]
    assert [entry["image"] for entry in failed] == ["1.png", "2.png", "4.png"]


def test_too_many_unreadable_images(tmp_path):
    split = write_images(tmp_path / "images", [(5, 5)] * 20)
    for path in split.paths[:12]:
        path.write_text("no image")
    with pytest.raises(DataError, match=r"12 of 20 images.*60\.0%.*allows 1\.0%") as caught:
        open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
    message = str(caught.value)
    assert all(f"\n  {number}.png: " in message for number in range(10))
    assert "11.png" not in message and "and 2 more" in message
    assert not list((tmp_path / "image_caches").iterdir())


def test_no_readable_image_is_refused_whatever_is_allowed(tmp_path):
    split = write_images(tmp_path / "images", [(5, 5)])
    split.paths[0].write_text("no image")
    with pytest.raises(DataError, match="1 of 1 images"):
        open_image_caches(
            split, tmp_path / "image_caches", PREPROCESS, 32, max_unreadable_fraction=1.0
        )


def test_both_caches_have_the_same_images(split, tmp_path):
    """A file that was unreadable for a while, with the size and time that it had before."""
    content, status = split.paths[0].read_bytes(), split.paths[0].stat()
    split.paths[0].write_bytes(b"x" * len(content))
    os.utime(split.paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    open_image_caches(
        split, tmp_path / "image_caches", PREPROCESS, None, max_unreadable_fraction=0.5
    )
    split.paths[0].write_bytes(content)
    os.utime(split.paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    caches = open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
    assert caches.evaluation.ids == caches.training.ids == split.ids
    assert not left_overs(tmp_path / "image_caches")


def test_an_image_larger_than_its_header(split, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "image_size", lambda path: (10, 5))
    training = open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32).training
    assert training.pixels.shape == (5, 5, 10, 3)
    assert training.sizes.tolist() == [[5, 10], [5, 2], [5, 6], [5, 5], [3, 10]]


def test_disk_too_small(split, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(image_cache_writer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"need .* GB, found 0\.0 GB free"):
        open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)


def test_interrupt_leaves_nothing(split, tmp_path, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoder, "open_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
    assert not list((tmp_path / "image_caches").iterdir())


def test_abandoned_partial_caches_are_removed_also_beside_complete_ones(split, tmp_path):
    open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
    abandoned = partial_path(tmp_path / "image_caches" / "evaluation-0", "0" * 16)
    abandoned.mkdir()
    (abandoned / "pixels.npy").write_bytes(b"x")
    with partial_directory(tmp_path / "image_caches" / "training-0") as being_written:
        open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
        assert left_overs(tmp_path / "image_caches") == [being_written.name]


MAKE = """
import sys
from pathlib import Path
from lattec_jax.data.images import decoder, image_cache
from lattec_jax.data.datasets.dataset import Split
from lattec_jax.data.images.preprocess import Preprocess
images, target = Path(sys.argv[1]), sys.argv[2]
opened = decoder.open_image
def waiting(path):
    print(path, flush=True)
    sys.stdin.read()  # until it is closed
    return opened(path)
decoder.open_image = waiting
paths = sorted(images.iterdir())
split = Split(tuple(p.name for p in paths), tuple(paths), None)
preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
image_cache.open_image_caches(split, target, preprocess, 32)
"""


def start(images: Path, target: Path) -> subprocess.Popen:
    """A process that makes image caches; it names an image and waits before it decodes any."""
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, str(images), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    )


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_killed_runs_leave_no_cache(split, tmp_path, ending):
    process = start(tmp_path / "images", tmp_path / "image_caches")
    process.stdout.readline()
    process.send_signal(ending)
    process.communicate(timeout=300)
    assert process.returncode != 0
    caches = [p.name for p in (tmp_path / "image_caches").iterdir() if not p.name.startswith(".")]
    assert caches == []
    if ending == signal.SIGINT:
        assert not left_overs(tmp_path / "image_caches")
    caches = open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
    assert caches.evaluation.ids == split.ids
    assert not left_overs(tmp_path / "image_caches")


def test_two_processes_at_once(split, tmp_path):
    processes = [start(tmp_path / "images", tmp_path / "image_caches") for _ in range(2)]
    for process in processes:  # both are in the middle of it
        process.stdout.readline()
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert len(list((tmp_path / "image_caches").iterdir())) == 2
    caches = open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
    assert caches.training.ids == split.ids


def test_damaged_caches_are_refused(split, tmp_path):
    caches = open_image_caches(split, tmp_path / "image_caches", PREPROCESS, 32)
    evaluation, training = (cache.directory for cache in caches)
    with pytest.raises(DataError, match="no readable image cache"):
        open_image_cache(tmp_path)
    pixels = evaluation / "pixels.npy"
    pixels.write_bytes(pixels.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        open_image_cache(evaluation)
    np.save(pixels, np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(DataError, match="expected 5 images, found 2"):
        open_image_cache(evaluation)
    index = training / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": "other"}))
    with pytest.raises(DataError, match="found 'other'"):
        open_image_cache(training)
