"""Missing and misplaced files are reported in one message, with a remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lattec_jax.data import datasets
from lattec_jax.data.datasets import file_locator
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import DataError
from tests.data.public_sets import SETS, content, make_tree


@pytest.fixture
def data_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path))
    return tmp_path


def problems(name: str, data_dir: Path, *extra: str) -> list[str]:
    """Return the problems that reading a set reports; it must change nothing."""
    before = content(data_dir)
    config = parse(["x", f"--config=configs/{name}.py", *extra])[0]
    with pytest.raises(DataError) as caught:
        datasets.read(config)
    assert content(data_dir) == before
    message = str(caught.value)
    assert "DATASETS.md#" in message and str(data_dir / SETS[name].root) in message
    return message.split("\n- ")[1:]


@pytest.mark.parametrize("name", SETS)
def test_everything_is_missing(data_dir, name):
    found = problems(name, data_dir)
    public = SETS[name]
    root = data_dir / public.root
    files = (
        [public.split]
        if public.split
        else ["variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test"))]
    )
    for file in files:
        assert any(str(root / file) in problem for problem in found), file
    assert f"no image folder {root / public.images}" in found[-1]
    assert len(found) == len(files) + 1


@pytest.mark.parametrize("name", SETS)
def test_a_renamed_image_folder_is_recognized(data_dir, name):
    root = make_tree(data_dir, name)
    moved = data_dir / "downloads" / "images"
    moved.parent.mkdir()
    if SETS[name].images:
        (root / SETS[name].images).rename(moved)
    else:
        moved.mkdir()
        for folder in ("cars_train", "cars_test"):
            (root / folder).rename(moved / folder)
    (found,) = problems(name, data_dir)
    assert f"{moved} contains all 18 images of" in found
    assert f"set --config.dataset.images={moved}" in found
    # The suggested setting works.
    config = parse(["x", f"--config=configs/{name}.py", f"--config.dataset.images={moved}"])[0]
    assert len(datasets.read(config).train.ids) == 12


def test_eurosats_usual_copies(data_dir):
    root = make_tree(data_dir, "eurosat")
    (root / "2750").rename(root / "EuroSAT_RGB")
    (found,) = problems("eurosat", data_dir)
    assert "set --config.dataset.images=EuroSAT_RGB, or move it to" in found
    (root / "EuroSAT").mkdir()
    (root / "EuroSAT_RGB").rename(root / "EuroSAT" / "2750")
    (found,) = problems("eurosat", data_dir)
    assert "set --config.dataset.images=EuroSAT/2750" in found


def test_a_copy_without_a_split_file_is_recognized_by_count(data_dir):
    root = make_tree(data_dir, "eurosat")
    (root / "2750").rename(root / "EuroSAT_RGB")
    (root / "split_zhou_EuroSAT.json").unlink()
    counts = ["--config.dataset.expected.train=12", "--config.dataset.expected.test=6"]
    split, images = problems("eurosat", data_dir, *counts)
    assert split.startswith("no split file")
    assert f"{root / 'EuroSAT_RGB'} contains as many images as expected" in images
    _, images = problems("eurosat", data_dir)
    assert "contains" not in images


def test_misplaced_files_and_missing_images_are_named_together(data_dir):
    root = make_tree(data_dir, "dtd")
    split = root / "split_zhou_DescribableTextures.json"
    split.rename(data_dir / split.name)
    for folder in ("banded", "zigzagged"):
        shutil.rmtree(root / "images" / folder)
    misplaced, missing = problems("dtd", data_dir)
    assert f"it was found as {data_dir / split.name}: move it to {split}" in misplaced
    assert "12 of 18 images of the split file are missing" in missing
    assert "banded/banded_0001.jpg" in missing and "and 2 more" in missing


def test_misplaced_images_are_found(data_dir):
    root = make_tree(data_dir, "dtd")
    (root / "images" / "zigzagged").rename(root / "zigzagged")
    (found,) = problems("dtd", data_dir)
    assert f"6 of 18 images of the split file are missing below {root / 'images'}" in found
    assert f"{root} contains them: move them" in found


def test_misplaced_lists_of_fgvc_aircraft(data_dir):
    root = make_tree(data_dir, "fgvc_aircraft")
    nested = root / "fgvc-aircraft-2013b" / "data"
    nested.mkdir(parents=True)
    for file in root.glob("*.txt"):
        file.rename(nested / file.name)
    (root / "images" / "0034301.jpg").unlink()
    found = problems("fgvc_aircraft", data_dir)
    assert len(found) == 5
    assert f"found as {nested / 'images_variant_val.txt'}: move it" in "".join(found)
    assert "1 of 18 images of the lists are missing" in found[-1]


def test_a_renamed_root_is_recognized(data_dir):
    make_tree(data_dir, "eurosat").rename(data_dir / "EuroSAT")
    (found,) = problems("eurosat", data_dir)
    assert f"{data_dir / 'EuroSAT'} contains its files: move it to {data_dir / 'eurosat'}" in found
    assert "--config.dataset.root=EuroSAT" in found
    config = parse(["x", "--config=configs/eurosat.py", "--config.dataset.root=EuroSAT"])[0]
    assert len(datasets.read(config).train.ids) == 12
    # An incomplete copy is not suggested as the root.
    (data_dir / "EuroSAT/2750/Forest/Forest_1.jpg").unlink()
    split, images = problems("eurosat", data_dir)
    assert "was found as" in split and images.startswith("no image folder")
    assert "contains 17 of the 18 images" in images and "\n    Forest/Forest_1.jpg" in images


def test_a_data_directory_that_is_the_set_itself(data_dir, monkeypatch):
    root = make_tree(data_dir, "eurosat")
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(root))
    (found,) = problems("eurosat", data_dir)
    assert f"{root} contains its files: set LATTECLIP_DATA_DIR={data_dir}" in found


def test_a_damaged_split_file_and_a_missing_folder(data_dir):
    root = make_tree(data_dir, "oxford_pets")
    shutil.rmtree(root / "images")
    (root / "split_zhou_OxfordPets.json").write_text(json.dumps({"train": []}))
    split, images = problems("oxford_pets", data_dir)
    assert "expected a list 'val', found NoneType" in split
    assert images.startswith("no image folder")


def test_the_search_is_bounded(tmp_path, monkeypatch):
    for number in range(30):
        (tmp_path / f"{number:02}").mkdir()
    (tmp_path / "29" / "a.json").touch()
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert file_locator.FolderIndex(tmp_path).list_files("A.json") == [tmp_path / "29" / "a.json"]
    monkeypatch.setattr(file_locator, "_MAX_FOLDERS", 10)
    assert file_locator.FolderIndex(tmp_path).list_files("a.json") == []
