"""The output of check_data for every kind; it changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lattec_jax import check_data
from lattec_jax.runtime.errors import DataError
from tests.data.public_sets import content, make_tree


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


def shown(place: Path, capsys, config: str, *extra: str) -> list[str]:
    """Return the printed lines."""
    before = content(place)
    check_data.main(["check_data", f"--config=configs/{config}.py", *extra])
    assert content(place) == before
    return capsys.readouterr().out.splitlines()


def test_counts_beside_those_expected(place, capsys):
    make_tree(place / "data", "eurosat")
    lines = shown(place, capsys, "eurosat", "--config.dataset.expected.test=6")
    assert lines[0] == "eurosat, kind coop; protocol: coop, inductive, last step"
    assert f"  image folder: {place / 'data/eurosat/2750'}" in lines
    assert f"  split file: {place / 'data/eurosat/split_zhou_EuroSAT.json'}" in lines
    assert any(line.endswith("CoOp/blob/main/DATASETS.md#eurosat") for line in lines)
    table = [line.split() for line in lines]
    assert ["sea", "or", "lake", "4", "2"] in table
    assert ["all", "3", "classes", "12", "6"] in table
    assert ["expected", "18,900", "6", "in", "10", "classes"] in table
    assert "warning: expected 18,900 training images, found 12" in lines
    assert "warning: expected 10 classes, found 3" in lines
    assert not any("test images" in line for line in lines)
    counts = "all files were found, but {} from config.dataset.expected (see the warnings)"
    assert lines[-2] == counts.format("2 counts differ")
    extra = ["--config.dataset.expected.test=6", "--config.dataset.expected.train=12"]
    assert shown(place, capsys, "eurosat", *extra)[-2] == counts.format("1 count differs")
    extra.append("--config.dataset.expected.classes=3")
    lines = shown(place, capsys, "eurosat", *extra)
    assert lines[-2] == "all files were found" and not any("warning" in line for line in lines)
    train = f"python -m lattec_jax.train --config=configs/eurosat.py {' '.join(extra)}"
    assert lines[-1] == f"next: {train}"


def test_expected_counts_follow_the_fraction(place, capsys):
    make_tree(place / "data", "eurosat")
    extra = ["--config.dataset.train_fraction=0.5", "--config.dataset.expected.train=12"]
    lines = shown(place, capsys, "eurosat", *extra)
    assert "all 3 classes 6 6" in [" ".join(line.split()) for line in lines]
    assert not any("training images, found" in line for line in lines)


def test_folders_with_and_without_labels(place, capsys):
    for n in range(8):
        for name in ("cat", "dog"):
            path = place / "images/train" / name / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    extra = ["--config.dataset.name=mine", "--config.dataset.root=images"]
    lines = shown(place, capsys, "folder", *extra)
    assert "  images: images" in lines
    assert any(line.split()[:3] == ["all", "2", "classes"] for line in lines)
    assert not any("expected" in line or "warning" in line for line in lines)
    lines = shown(place, capsys, "folder", *extra, "--config.dataset.labels=none")
    assert ["dog", "-", "-"] in [line.split() for line in lines]
    with pytest.raises(DataError, match="nowhere does not exist"):
        shown(place, capsys, "folder", *extra, "--config.dataset.root=nowhere")


def test_digits_are_counted_before_they_are_written(place, capsys):
    lines = shown(place, capsys, "demo")
    assert "all 10 classes 1,000 797" in [" ".join(line.split()) for line in lines]
    assert "  images, written at first use: artifacts/digits/images" in lines
    assert list(place.iterdir()) == []


def test_the_command_ends_with_status_2_and_starts_no_jax(place):
    root = make_tree(place / "data", "dtd")
    (root / "images/banded/banded_0001.jpg").unlink()
    command = [sys.executable, "-X", "importtime", "-m", "lattec_jax.check_data"]
    found = subprocess.run(
        [*command, "--config=configs/dtd.py"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert "error: the files of dtd are not as expected, 1 problem:" in found.stderr
    assert not any(line.split()[-1] == "jax" for line in found.stderr.splitlines() if "|" in line)
