"""Broken directory trees give an error that names the broken item."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lattec_jax.data import datasets
from lattec_jax.data.datasets import file_locator
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import DataError
from tests.data.public_sets import SETS, make_tree

SPLIT = SETS["dtd"].split


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A complete copy of dtd."""
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path))
    return make_tree(tmp_path, "dtd")


def message(name: str = "dtd", *extra: str) -> str:
    with pytest.raises(DataError) as caught:
        datasets.read(parse(["x", f"--config=configs/{name}.py", *extra])[0])
    return str(caught.value)


def edit(root: Path, change: Callable[[dict], object]) -> None:
    parts = json.loads((root / SPLIT).read_text(encoding="utf-8"))
    change(parts)
    (root / SPLIT).write_text(json.dumps(parts), encoding="utf-8")


def link_to_itself(root: Path) -> None:
    shutil.rmtree(root / "images")
    (root / "images").symlink_to("images")


def link_among_folders(root: Path) -> None:
    (root / "images/banded").rename(root / "elsewhere")
    (root / "images/banded").symlink_to("banded")


def link_as_split_file(root: Path) -> None:
    (root / SPLIT).unlink()
    (root / SPLIT).symlink_to(SPLIT)


def folder_as_split_file(root: Path) -> None:
    (root / SPLIT).rename(root / "kept")
    (root / SPLIT).mkdir()
    (root / "kept").rename(root / SPLIT / SPLIT)


def empty_folder_as_split_file(root: Path) -> None:
    (root / SPLIT).unlink()
    (root / SPLIT).mkdir()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (link_to_itself, ["no image folder {root}/images"]),
        (link_among_folders, ["6 of 18 images of the split file are missing", "banded/banded_"]),
        (link_as_split_file, ["- no split file {root}/{split}\n"]),
        (
            folder_as_split_file,
            [
                "- {root}/{split} is a folder, expected the split file; it was found as "
                "{root}/{split}/{split}: replace {root}/{split} by it\n"
            ],
        ),
        (empty_folder_as_split_file, ["- {root}/{split} is a folder, expected the split file\n"]),
        (
            lambda root: edit(root, lambda s: s["test"].append(["n" * 300, 0, "banded"])),
            ["1 of 19 images of the split file are missing below {root}/images", "n" * 300],
        ),
        (
            lambda root: edit(root, lambda s: s["test"].append(["a\0.jpg", 0, "banded"])),
            ["1 of 19 images of the split file are missing below {root}/images"],
        ),
        (
            lambda root: (root / SPLIT).write_text("[" * 100_000, encoding="utf-8"),
            ["- the split file {root}/{split} cannot be read as JSON"],
        ),
        (
            lambda root: edit(root, lambda s: s["val"].append(["a.jpg", 7, "caf\ud800"])),
            ["{split}, val[3]: expected text that can be encoded in UTF-8", "7, 'caf\\ud800"],
        ),
        (
            lambda root: edit(root, lambda s: s["val"].append(["\udcff.jpg", 0, "banded"])),
            ["{split}, val[3]: expected text that can be encoded in UTF-8, found ['\\udcff.jpg'"],
        ),
    ],
)
def test_named_in_the_one_message(root, spoil, expected):
    spoil(root)
    found = message()
    found.encode()  # it can be printed
    assert found.startswith("the files of dtd are not as expected, ")
    for text in expected:
        assert text.format(root=root, split=SPLIT) in found


def test_the_whole_disk_as_data_directory(root, monkeypatch):
    monkeypatch.setattr(file_locator, "_MAX_FOLDERS", 500)
    monkeypatch.setenv("LATTECLIP_DATA_DIR", "/")
    assert f"no split file /dtd/{SPLIT}" in message()


def test_a_home_that_nobody_has(root, monkeypatch):
    monkeypatch.setenv("LATTECLIP_DATA_DIR", "~nobody-of-that-name/sets")
    assert "is ~nobody-of-that-name/sets, which is not a folder" in message()


def refused(root: Path, closed: Path, mode: int) -> str:
    """Return the command's error while a folder has this mode."""
    command = [sys.executable, "-m", "lattec_jax.check_data", "--config=configs/dtd.py"]
    if os.geteuid() == 0:  # whom no permission keeps out
        if shutil.which("setpriv") is None:
            pytest.skip("there is no setpriv to give up a capability")
        capabilities = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", capabilities, *command]
    closed.chmod(mode)
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    finally:
        closed.chmod(0o755)
    assert found.returncode == 2, found.stderr
    return found.stderr


@pytest.mark.parametrize("folder", ["dtd", "dtd/images", "dtd/images/banded"])
def test_folders_that_may_not_be_looked_into(root, folder):
    closed = root.parent / folder
    found = refused(root, closed, 0)
    expected = f"no permission to look into {closed}, where "
    if closed == root:
        assert found.startswith(f"error: {expected}{root} is expected")
    else:
        assert f"1 problem:\n- {expected}images of the split file are expected" in found


def test_a_closed_folder_beside_the_images(root):
    (root / "images").rename(root / "photos")
    (root / "closed").mkdir()
    found = refused(root, root / "closed", 0o444)  # its names can be listed, no more
    assert f"{root / 'photos'} contains all 18 images of the split file" in found


def test_an_empty_folder_is_not_the_expected_number_of_images(root):
    shutil.rmtree(root / "images")
    (root / SPLIT).unlink()
    (root / "empty").mkdir()
    counts = [f"--config.dataset.expected.{part}=0" for part in ("train", "test")]
    assert "contains" not in message("dtd", *counts)


def test_byte_order_marks_are_skipped(root, tmp_path):
    split = root / SPLIT
    split.write_text(split.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert datasets.read(parse(["x", "--config=configs/dtd.py"])[0]).class_names[0] == "banded"
    aircraft = make_tree(tmp_path, "fgvc_aircraft")
    for file in aircraft.glob("*.txt"):
        file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    dataset = datasets.read(parse(["x", "--config=configs/fgvc_aircraft.py"])[0])
    assert dataset.class_names == ("707-320", "cessna 172", "f/a-18")
    assert dataset.train.ids[0] == "0034301.jpg"


def test_what_contradicts_itself_is_named_with_its_file(root, tmp_path):
    whole = (root / SPLIT).read_text(encoding="utf-8")
    edit(root, lambda s: [rows.clear() for rows in s.values()])
    assert message() == f"{root / SPLIT}: expected at least two class names, found 0: none"
    (root / SPLIT).write_text(whole, encoding="utf-8")
    edit(root, lambda s: s["test"].clear())
    assert message() == f"{root / SPLIT}: expected images in the test part, found none"
    (root / SPLIT).write_text(whole, encoding="utf-8")
    edit(root, lambda s: s["test"].append(s["train"][0]))
    assert message().endswith(
        "training must not see test images. Remove them from one of the two parts, which are "
        f"listed by {root / SPLIT}"
    )
    aircraft = make_tree(tmp_path, "fgvc_aircraft")
    with open(aircraft / "images_variant_test.txt", "a", encoding="utf-8") as lines:
        lines.write("0034301 707-320\n")
    lists = [aircraft / f"images_variant_{part}.txt" for part in ("train", "val", "test")]
    assert message("fgvc_aircraft").endswith(
        f"the two parts, which are listed by {lists[0]} and {lists[1]} and {lists[2]}"
    )
    with open(aircraft / "variants.txt", "a", encoding="utf-8") as lines:
        lines.write("Cessna 172\n")
    assert message("fgvc_aircraft") == (
        f"{aircraft / 'variants.txt'}: expected different class names, found 'cessna 172', which "
        "is repeated or empty"
    )
