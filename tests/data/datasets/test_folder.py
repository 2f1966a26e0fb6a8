"""Folders, lists, class names and labels: every layout, and a message for every mistake."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import common
from lattec_jax.data import datasets
from lattec_jax.data.datasets.dataset import Dataset, Split, check
from lattec_jax.runtime.config import validate
from lattec_jax.runtime.errors import ConfigError, DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def load(root: Path, **settings) -> Dataset:
    config = common.get_config()
    config.dataset.update({"name": "mine", "root": str(root), **settings})
    return datasets.load(validate(config))


@pytest.fixture
def usual(tmp_path) -> Path:
    """train/ and test/ with class sub-folders."""
    touch(tmp_path, *(f"train/{c}/{i}.jpg" for c in ("big_cat", "dog") for i in range(3)))
    touch(tmp_path, "test/dog/7.PNG", "test/big_cat/8.webp")
    return tmp_path


def test_train_and_test_folders(usual):
    touch(usual, "train/dog/.hidden.jpg", "train/.cache/dog/1.jpg", "train/dog/notes.txt")
    dataset = load(usual)
    assert dataset.name == "mine"
    assert dataset.class_names == ("big cat", "dog")
    expected = [f"train/{c}/{i}.jpg" for c in ("big_cat", "dog") for i in range(3)]
    assert dataset.train.ids == tuple(expected)
    assert dataset.train.paths[4] == usual / "train/dog/1.jpg"
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.labels.dtype == np.int32
    assert dataset.test.ids == ("test/big_cat/8.webp", "test/dog/7.PNG")
    assert dataset.test.labels.tolist() == [0, 1]
    assert dataset.protocol == "own test images, inductive, last step"


def test_every_suffix_in_any_case(tmp_path):
    suffixes = ("jpg", "jpeg", "PNG", "webp", "Bmp", "gif", "tif", "TIFF")
    names = [f"a/{number}.{suffix}" for number, suffix in enumerate(suffixes)]
    touch(tmp_path, *names, "b/x.txt", "b/y.jpg.part", "b/z.jpg")
    assert load(tmp_path, held_out_fraction=0.0).train.ids == (*names, "b/z.jpg")


def test_held_out_share(tmp_path):
    touch(tmp_path, *(f"{c}/{i:02d}.jpg" for c in "ab" for i in range(25)))
    dataset = load(tmp_path)
    assert (len(dataset.train.ids), len(dataset.test.ids)) == (40, 10)
    assert set(dataset.train.ids) | set(dataset.test.ids) == {
        f"{c}/{i:02d}.jpg" for c in "ab" for i in range(25)
    }
    for split in (dataset.train, dataset.test):
        assert list(split.ids) == sorted(split.ids)
        assert split.labels.tolist() == [int(image[0] == "b") for image in split.ids]
    digests = {
        image: hashlib.sha256(f"0 {image}".encode()).hexdigest()
        for image in (*dataset.train.ids, *dataset.test.ids)
    }
    assert set(dataset.test.ids) == set(sorted(digests, key=digests.get)[:10])
    assert load(tmp_path).test.ids == dataset.test.ids
    assert load(tmp_path, split_seed=1).test.ids != dataset.test.ids
    assert dataset.protocol == "0.2 held out (seed 0), inductive, last step"
    before = set(dataset.train.ids)
    touch(tmp_path, "a/00b.jpg")  # one more image moves at most one other
    assert (
        len(before - set(load(tmp_path).train.ids))
        + len(set(dataset.test.ids) - set(load(tmp_path).test.ids))
        <= 1
    )


def test_no_test_images(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    dataset = load(tmp_path, held_out_fraction=0.0)
    assert dataset.test is None and len(dataset.train.ids) == 2
    assert "no test" in dataset.protocol
    with pytest.raises(ConfigError, match=r"at least 0 and below 1, found 1\.0"):
        load(tmp_path, held_out_fraction=1.0)


def test_root_as_training_folder_with_a_test_folder_inside(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "test/a/3.jpg")
    dataset = load(tmp_path)
    assert dataset.train.ids == ("a/1.jpg", "b/2.jpg")
    assert dataset.test.ids == ("test/a/3.jpg",)
    assert dataset.class_names == ("a", "b")


def test_flat_folder_with_class_names(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    (tmp_path / "names.txt").write_bytes("\ufeffÉpée \r\n rose\r\n\r\n".encode())
    dataset = load(tmp_path, class_names="names.txt")
    assert dataset.class_names == ("Épée", "rose")
    assert dataset.train.labels is None and dataset.test.labels is None


def test_labels_from_folders_are_matched_loosely(tmp_path):
    touch(tmp_path, "Annual_Crop/x/1.jpg", "sea LAKE/2.jpg", "sea LAKE/annual crop/3.jpg")
    (tmp_path / "names.txt").write_text("sea lake\nannual  crop\nforest", encoding="utf-8")
    dataset = load(tmp_path, class_names=str(tmp_path / "names.txt"), held_out_fraction=0.0)
    assert dataset.class_names == ("sea lake", "annual  crop", "forest")
    assert dataset.train.labels.tolist() == [1, 0, 1]  # the nearest folder counts


def test_auto_labels_want_every_image_in_a_class_folder(usual):
    touch(usual, "train/stray.jpg")
    assert load(usual).train.labels is None
    assert load(usual).test.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"1 of 7 in the train part.*train/stray\.jpg"):
        load(usual, labels="folders")
    assert load(usual, labels="none").test.labels is None


def test_labels_that_are_not_read_are_mentioned_once(usual, caplog):
    for stray in ("b.jpg", "b.jpg", "a.jpg"):
        touch(usual, f"train/named_nowhere_else_{stray}")
        load(usual)
    first, second = caplog.messages
    assert first.startswith("6 of 7 images of the train part") and "else_b.jpg" in first
    assert second.startswith("6 of 8 images of the train part") and "else_a.jpg" in second


def test_labels_from_csv(usual, tmp_path):
    touch(tmp_path, "unused.jpg")
    lines = ["label, image", "DOG,test/dog/7.PNG", "0,./test/big_cat/8.webp", "dog,unused.jpg"]
    (tmp_path / "labels.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    dataset = load(usual, labels="labels.csv")
    assert dataset.train.labels is None
    assert dataset.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image;label\na;b", r"labels\.csv, line 1: .*image,label, found image;label"),
        ("", "line 1: .*found nothing"),
        ("image,label\ntest/dog/9.PNG,dog", r"line 2: there is no image 'test/dog/9\.PNG'"),
        ("image,label\ntest/dog/7.PNG,wolf", "line 2: .*found 'wolf'.*big cat, dog"),
        ("image,label\ntest/dog/7.PNG,2", "line 2: .*index from 0 to 1, found '2'"),
        ("image,label\ntest/dog/7.PNG", "line 2: .*found ''"),
        ("image,label\ntest/dog/7.PNG,dog\n\ntest/dog/7.PNG,0", "line 4: a second label"),
        ("image,label\ntest/dog/7.PNG,dog", r"no label for 1 of 2 images of the test part"),
    ],
)
def test_mistakes_in_csv(usual, text, message):
    (usual / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(usual, labels="labels.csv")


def test_missing_csv(usual):
    with pytest.raises(DataError, match=r'expected "auto", "none", "folders" or a CSV.*folder\b'):
        load(usual, labels="folder")


def test_lists(usual, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    touch(elsewhere, "dog/far.jpg")
    train = ["train/dog/2.jpg", "", "./train/big_cat/0.jpg", str(elsewhere / "dog/far.jpg")]
    own = elsewhere / "train.txt"
    own.write_text("\n".join(train), encoding="utf-8")
    (usual / "test.txt").write_text("train/dog/0.jpg\n", encoding="utf-8")
    dataset = load(usual, train=str(own), test="test.txt")
    far = os.path.relpath(elsewhere / "dog/far.jpg", usual)
    assert dataset.train.ids == (far, "train/big_cat/0.jpg", "train/dog/2.jpg")
    assert dataset.class_names == ("big cat", "dog")
    assert dataset.train.labels.tolist() == [1, 0, 1]
    assert dataset.test.ids == ("train/dog/0.jpg",)


@pytest.mark.parametrize("form", ["{far}", "../{there}", "train/../../{there}"])
def test_a_list_that_comes_with_the_data_names_nothing_outside(usual, tmp_path_factory, form):
    far = tmp_path_factory.mktemp("far") / "far.jpg"
    far.write_bytes(b"")
    there = os.path.relpath(far, usual.parent)
    line = form.format(far=far, there=there)
    (usual / "train.txt").write_text(f"train/dog/0.jpg\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.txt, line 2: expected a path below .*elsewhere"):
        load(usual, train="train.txt")


def test_mistakes_in_lists(usual):
    listed = usual / "train.txt"
    listed.write_text("train/dog/0.jpg\n" + "".join(f"no/{i}.jpg\n" for i in range(12)))
    with pytest.raises(DataError, match=r"(?s)lists 12 images.*line 2: no/0\.jpg.*and 2 more"):
        load(usual, train="train.txt")
    listed.write_text("train/dog/0.jpg\ntrain/./dog/0.jpg\n")
    with pytest.raises(DataError, match=r"'train/dog/0\.jpg' twice"):
        load(usual, train="train.txt")
    listed.write_text("\n")
    with pytest.raises(DataError, match="no images for the train part"):
        load(usual, train="train.txt")
    listed.write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(DataError, match="UTF-8"):
        load(usual, train="train.txt")
    (usual / "train.lst").write_text("a")
    with pytest.raises(DataError, match=r"a folder or a \.txt list, found .*train\.lst"):
        load(usual, train="train.lst")


def test_train_and_test_may_not_share_a_image(usual):
    (usual / "test.txt").write_text("test/dog/7.PNG\ntrain/dog/0.jpg\n")
    with pytest.raises(DataError, match=r"1 of 2 test images.*'train/dog/0\.jpg'"):
        load(usual, test="test.txt")
    os.symlink(usual / "train", usual / "again")
    with pytest.raises(DataError, match=r"6 of 6 test images.*'again/big_cat/0\.jpg'"):
        load(usual, test="again")


def test_links_are_followed_once(usual):
    os.symlink(usual / "train", usual / "train" / "dog" / "loop")
    assert len(load(usual).train.ids) == 6


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"root": ""}, ConfigError, "config.dataset.root is empty; set"),
        ({"root": "/nowhere"}, DataError, "/nowhere does not exist"),
        ({"root": __file__}, DataError, "is a file"),
        ({"name": ""}, ConfigError, "config.dataset.name"),
        ({"name": "a/b"}, ConfigError, "found 'a/b'"),
        ({"name": ".."}, ConfigError, "found '..'"),
        ({"kind": "foldr"}, ConfigError, "Did you mean 'folder'"),
        ({"train": "trian"}, DataError, "there is no trian in .*the root contains test, train"),
        ({"test": "tset"}, DataError, "config.dataset.test: .*there is no tset"),
        ({"class_names": "no.txt"}, DataError, r"no file no\.txt"),
        ({"train": "train/dog"}, DataError, "at least two class names in .*found 0: none"),
    ],
)
def test_mistakes_in_settings(usual, settings, error, message):
    with pytest.raises(error, match=message):
        load(**{"root": usual, **settings})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ndog\n", r"names\.txt, line 2: expected a class name, found nothing"),
        ("cat\ndog\nCAT\n", "'cat' and 'CAT' are the same name"),
        ("a cat\na_cat", "'a cat' and 'a_cat' are the same name"),
        ("cat\n", "found 1: cat"),
        (
            "cat | \ndog\n",
            r"names\.txt, line 1: expected a class name, found nothing beside a '\|'",
        ),
        ("cat | tom\ndog | Tom\n", "'tom' and 'Tom' are the same name"),
        ("", "found 0: none"),
    ],
)
def test_mistakes_in_class_names(usual, text, message):
    (usual / "names.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(usual, class_names="names.txt")


def test_several_names_of_a_class(tmp_path):
    touch(tmp_path, "motor_car/1.jpg", "Automobile/2.jpg", "dog/3.jpg", "car/4.jpg")
    (tmp_path / "names.txt").write_text("dog\nautomobile | car|motor car\n", encoding="utf-8")
    dataset = load(tmp_path, class_names="names.txt", held_out_fraction=0.0)
    assert dataset.class_names == ("dog", "automobile")
    assert dataset.class_synonyms == (("dog",), ("automobile", "car", "motor car"))
    assert dataset.train.ids[0] == "Automobile/2.jpg"
    assert dataset.train.labels.tolist() == [1, 1, 0, 1]
    (tmp_path / "labels.csv").write_text("image,label\n" + "dog/3.jpg,Motor_Car\n")
    lists = {"train": "train.txt", "labels": "labels.csv", "class_names": "names.txt"}
    (tmp_path / "train.txt").write_text("dog/3.jpg\n")
    assert load(tmp_path, **lists, held_out_fraction=0.0).train.labels.tolist() == [1]


def test_no_images(tmp_path):
    touch(tmp_path, "readme.md")
    with pytest.raises(DataError, match=r"no images for the train part.*looked for \.jpg"):
        load(tmp_path)


def test_one_class_folder(tmp_path):
    touch(tmp_path, "only/1.jpg", "only/2.jpg")
    with pytest.raises(DataError, match=r"class names in the sub-folders.*1: only"):
        load(tmp_path)


def test_a_class_called_train(tmp_path):
    touch(tmp_path, "car/1.jpg", "train/2.jpg", "bus/3.jpg")
    with pytest.raises(DataError, match=r"'train' is a class of yours.*dataset\.train=\"\""):
        load(tmp_path)
    assert load(tmp_path, train="", held_out_fraction=0.0).class_names == ("bus", "car", "train")
    (tmp_path / "names.txt").write_text("car\ntrain\nbus\n")
    with pytest.raises(DataError, match="'train' is one of the class names, as is 'bus'"):
        load(tmp_path, class_names="names.txt")
    dataset = load(tmp_path, class_names="names.txt", train="", held_out_fraction=0.0)
    assert dataset.train.labels.tolist() == [2, 0, 1]


def test_unreadable_folders_and_names(usual):
    odd = os.fsencode(usual / "train" / "dog") + b"/caf\xe9.jpg"
    with open(odd, "wb"):
        pass
    with pytest.raises(DataError, match="file names in UTF-8"):
        load(usual)


def test_works_in_the_c_locale(tmp_path):
    touch(tmp_path, "rosé/ü.jpg", "épée/1.jpg")
    (tmp_path / "names.txt").write_text("Rosé\nÉpée\n", encoding="utf-8")
    program = (
        "from tests.data.datasets.test_folder import load, Path; import sys\n"
        "d = load(Path(sys.argv[1]), class_names='names.txt', held_out_fraction=0.0)\n"
        "print(ascii((d.class_names, d.train.ids, d.train.labels.tolist())))"
    )
    environment = {**os.environ, "LC_ALL": "C"}
    environment.pop("PYTHONIOENCODING", None)
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    expected = (("Rosé", "Épée"), ("rosé/ü.jpg", "épée/1.jpg"), [0, 1])
    assert result.stdout.decode().strip() == ascii(expected)


def test_check_of_other_data_sets(tmp_path):
    good = Split(("a", "b"), (tmp_path / "a", tmp_path / "b"), np.array([0, 1], np.int32))
    dataset = Dataset("name", ("x", "y"), good, None, "inductive")
    check(dataset)
    other = Split(("a", "a"), (tmp_path / "c", tmp_path / "d"), None)
    for changes, message in [
        ({"class_names": ("x", "x")}, "'x', which is repeated"),
        ({"class_names": ("x",)}, "found 1: x"),
        ({"synonyms": (("z",), ("z",))}, "'z', which is repeated"),
        ({"train": other}, "'a' 2 times"),
        ({"train": dataclasses.replace(good, labels=np.array([0, 2]))}, "from 0 to 1 .* 0 to 2"),
        ({"train": dataclasses.replace(good, labels=np.array([0]))}, "expected 2 labels"),
        ({"test": Split((), (), None)}, "images in the test part, found none"),
        ({"test": dataclasses.replace(good, ids=("q", "r"))}, "2 of 2 test images"),
    ]:
        with pytest.raises(DataError, match=message):
            check(dataclasses.replace(dataset, **changes))


def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    config = common.get_config()
    config.artifacts = str(tmp_path)
    config.dataset.update({"name": "digits", "kind": "digits"})
    dataset = datasets.load(validate(config))
    assert len(dataset.class_names) == 10 and dataset.train.paths[0].is_file()


@pytest.mark.parametrize("form", ["relative", "absolute", "through"])
def test_a_list_does_not_name_images_outside_of_the_root(usual, form):
    touch(usual.parent, "private.jpg")
    outside = {
        "relative": "../private.jpg",
        "absolute": str(usual.parent / "private.jpg"),
        "through": "train/../../private.jpg",
    }[form]
    (usual / "train.txt").write_text(f"train/dog/0.jpg\n{outside}\n")
    with pytest.raises(DataError, match=r"train\.txt, line 2: expected a path below"):
        load(usual, train="train.txt")


def test_a_list_may_name_the_place_that_the_root_is_a_link_to(usual):
    (usual / "train.txt").write_text(f"{usual}/train/dog/0.jpg\n{usual}/train/big_cat/0.jpg\n")
    link = usual.parent / "link"
    link.symlink_to(usual)
    assert len(load(link, train="train.txt", held_out_fraction=0.0).train.ids) == 2
