"""Import of the authors' descriptions: assigned by file name, refused if ambiguous."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from captioning import import_released as command
from captioning.import_released import import_released
from configs import common
from lattec_jax import train
from lattec_jax.data import datasets
from lattec_jax.data.descriptions import descriptions_path, records
from lattec_jax.runtime.config import parse, validate
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.training import prepare
from tests.dummy import dummy_checkpoint
from tests.runs import arguments, make_images

IMAGES = "train_classname_eurosat_77_llava-v1.6-mistral-7b_4bit"
GROUPS = "train_4images_eurosat_describe_common_v3_77_llava-v1.6-mistral-7b_4bit"


def make_set(tmp_path, paths, names=("cat", "Wild_Cat")):
    """A labeled set with training images at `paths` below train/."""
    for number, path in enumerate(paths):
        file = tmp_path / "images" / "train" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (number + 1, 2)).save(file)
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    config = common.get_config()
    config.artifacts = str(tmp_path / "artifacts")
    config.dataset.update(
        {
            "name": "mine",
            "root": str(tmp_path / "images"),
            "class_names": str(tmp_path / "names.txt"),
        }
    )
    config.dataset.test, config.dataset.held_out_fraction = "", 0.0
    config.descriptions.group_members = "drawn"  # as the release draws them
    return validate(config).copy_and_resolve_references().unlock()


def make_texts(tmp_path, texts, folder=IMAGES):
    folder = tmp_path / "generated_captions" / folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def found(path):
    return {record.image: record.text for record in records(path)}


@pytest.fixture
def config(tmp_path):
    return make_set(tmp_path, ["cat/c_1.jpg", "cat/c_2.final.jpg", "Wild_Cat/w 1.png"])


TEXTS = {"c_1.txt": "A cat.", "c_2.txt": "A tabby\nasleep. ", "w 1.txt": "Eine schöne Katze 猫"}


def test_images(config, tmp_path):
    done = import_released(config, make_texts(tmp_path, TEXTS))
    assert done.path == tmp_path / "artifacts/mine/descriptions/released-image.jsonl"
    assert found(done.path) == {
        "train/cat/c_1.jpg": "A cat.",
        "train/cat/c_2.final.jpg": "A tabby asleep.",
        "train/Wild_Cat/w 1.png": "Eine schöne Katze 猫",
    }
    lines = [json.loads(line) for line in done.path.read_text(encoding="utf-8").splitlines()]
    assert lines[0].keys() == {"image", "kind", "text", "engine", "model", "prompt", "decoding"}
    assert (lines[0]["engine"], lines[0]["model"]) == ("released", "llava-v1.6-mistral-7b")
    assert (lines[0]["prompt"], lines[0]["kind"]) == ("classname_eurosat", "image")
    assert lines[0]["decoding"] == "4bit, at most 77 new tokens"


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        (GROUPS, None),
        (GROUPS, "group"),
        (GROUPS.replace("4images_", ""), None),  # renamed for the released training scripts
        (IMAGES, "group"),
    ],
)
def test_groups(config, tmp_path, folder, kind):
    done = import_released(config, make_texts(tmp_path, TEXTS, folder), kind)
    config.descriptions.engine = "released"
    assert done.path == descriptions_path(config, "group")
    assert done.path.name == "released-group-of-4-drawn.jsonl"
    assert {record.kind for record in records(done.path)} == {"group"}
    assert len(found(done.path)) == 3 and all(not r.members for r in records(done.path))


def test_groups_with_the_image_first_are_refused(config, tmp_path):
    config.descriptions.group_members = "with_image"
    folder = make_texts(tmp_path, {"Forest_1.txt": "Trees."}, GROUPS)
    with pytest.raises(ConfigError, match=r"--config\.descriptions\.group_members=drawn"):
        import_released(config, folder)


def test_groups_of_another_size(config, tmp_path):
    folder = make_texts(tmp_path, TEXTS, GROUPS.replace("4images", "8images"))
    with pytest.raises(ConfigError, match=r"groups of 8.*--config\.descriptions\.group_size=8"):
        import_released(config, folder)
    config.descriptions.group_size = 8
    assert import_released(config, folder).path.name == "released-group-of-8-drawn.jsonl"
    config.descriptions.correct_per_group = 2
    with pytest.raises(ConfigError, match="correct_per_group is set"):
        import_released(config, folder)


def test_base_names_that_repeat_need_the_class(tmp_path):
    paths = ["cat/image_0001.jpg", "Wild_Cat/image_0001.jpg", "Wild_Cat/image_0002.jpg"]
    config = make_set(tmp_path, paths, ["cat", "wild cat"])
    folder = make_texts(tmp_path, {"image_0001.txt": "?", "image_0002.txt": "Two."})
    with pytest.raises(DataError) as refused:
        import_released(config, folder)
    assert "train/Wild_Cat/image_0001.jpg, train/cat/image_0001.jpg" in str(refused.value)
    assert "image_0002" not in str(refused.value)
    (folder / "image_0001.txt").unlink()
    make_texts(tmp_path, {"cat_image_0001.txt": "One.", "wild_cat_image_0001.txt": "Wild."})
    done = import_released(config, folder)
    assert found(done.path) == {
        f"train/{path}": text for path, text in zip(paths, ["One.", "Wild.", "Two."], strict=True)
    }
    make_texts(tmp_path, {"wild_cat_image_0002.txt": "Two again."})
    with pytest.raises(DataError, match=r"image_0002.txt and wild_cat_image_0002.txt: train/Wild"):
        import_released(config, folder)


def test_base_names_that_only_a_later_dot_tells_apart(tmp_path):
    config = make_set(tmp_path, ["cat/a.1.jpg", "cat/a.2.jpg", "Wild_Cat/b.jpg"])
    with pytest.raises(DataError, match=r"a\.txt: train/cat/a\.1\.jpg, train/cat/a\.2\.jpg"):
        import_released(config, make_texts(tmp_path, {"a.txt": "x", "b.txt": "y"}))


def test_the_folder_or_a_class_name_may_be_the_prefix(tmp_path):
    # As Caltech101: the class "face" lies in the folder "Faces", and labels come from elsewhere.
    config = make_set(tmp_path, ["Faces/i1.jpg", "Faces/i2.jpg", "x/i1.jpg"], ["face", "été"])
    rows = ["train/Faces/i1.jpg,face", "train/Faces/i2.jpg,face", "train/x/i1.jpg,été"]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    config.dataset.labels = str(tmp_path / "labels.csv")
    names = {"face_i1.txt": "1", "Faces_i2.txt": "2", "Été_i1.txt": "3"}
    done = import_released(config, make_texts(tmp_path, names))
    assert list(found(done.path).values()) == ["1", "2", "3"]


def test_unmatched_files_and_images_are_counted_and_printed(config, tmp_path):
    texts = {"c_1.txt": "A cat.", "c_2.txt": " \n", "c_3.txt": "Whose?", "C_1.txt": "whose?"}
    folder = make_texts(tmp_path, texts | {"notes.md": "no text"})
    done = import_released(config, folder)
    assert found(done.path) == {"train/cat/c_1.jpg": "A cat."}
    assert done.unmatched_files == ("C_1.txt", "c_3.txt")
    assert (done.images_without_text, done.empty_files) == (
        ("train/Wild_Cat/w 1.png",),
        ("c_2.txt",),
    )
    report = done.report()
    assert "belong to no training image: 2\n    C_1.txt\n    c_3.txt" in report
    assert "without a text file: 1\n    train/Wild_Cat/w 1.png" in report
    assert "empty text files: 1\n    c_2.txt" in report


def test_an_existing_file_is_not_overwritten(config, tmp_path):
    folder = make_texts(tmp_path, TEXTS)
    path = import_released(config, folder).path
    assert import_released(config, folder).num_imported == 3
    before = path.read_bytes()
    (folder / "c_1.txt").write_text("Another cat.")
    with pytest.raises(DataError, match="contains other descriptions and is not overwritten"):
        import_released(config, folder)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "captions",
        "val_classname_eurosat_77_llava-v1.6-mistral-7b_4bit",
        "train_classname_eurosat_llava-v1.6-mistral-7b_4bit",
        "train_classname_eurosat_77_llava-v1.6-mistral-7b",
    ],
)
def test_folders_of_another_form(config, tmp_path, name):
    with pytest.raises(DataError, match=rf"train_<prompt>.*found '{name}'"):
        import_released(config, make_texts(tmp_path, TEXTS, name))


def test_mistakes(config, tmp_path):
    folder = make_texts(tmp_path, TEXTS)
    with pytest.raises(ConfigError, match="expected image or group, found 'images'"):
        import_released(config, folder, "images")
    with pytest.raises(ConfigError, match="contains descriptions of groups of 4"):
        import_released(config, make_texts(tmp_path, TEXTS, GROUPS), "image")
    with pytest.raises(DataError, match="expected a folder of text files, found none"):
        import_released(config, tmp_path / IMAGES)
    (folder / "c_1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"c_1\.txt: expected UTF-8 text"):
        import_released(config, folder)
    other = make_texts(tmp_path / "other", {"x.txt": "y"})
    with pytest.raises(DataError, match=r"none of the 1 text files[\s\S]*names such as w 1\.txt"):
        import_released(config, other)
    with pytest.raises(ConfigError, match="--folder is missing"):
        command.main(["import_released", "--config=configs/folder.py"])


@pytest.fixture
def command_line(tmp_path, capsys):
    """Of a run with 36 training images whose descriptions were imported by the command."""
    make_images(tmp_path / "labeled", 12, labeled=True)
    ids = [path.stem for path in Path("labeled/train").rglob("*.*")]
    texts = {f"{name}.txt": f"a photo of the red {name}" for name in ids}
    drawn = "--config.descriptions.group_members=drawn"
    config = arguments("labeled", "--config.descriptions.engine=released", drawn)
    config.remove("--config.descriptions.engine=pixels")
    for folder in (IMAGES, GROUPS):
        folder = make_texts(tmp_path, texts, folder)
        command.main(["import_released", *_dataset(config), f"--folder={folder}/"])
    printed = capsys.readouterr().out
    assert "36 image descriptions ->" in printed and "36 group descriptions ->" in printed
    assert "--config.descriptions.engine=released" in printed
    return config


def test_training_reads_what_was_imported(command_line):
    config, _ = parse(command_line)
    dataset = datasets.load(config)
    images = SimpleNamespace(ids=dataset.train.ids)
    labels = SimpleNamespace(labels=dataset.train.labels)
    read = prepare.load_descriptions(
        config, "", dataset, images, labels, ("image", "group"), train.describe
    )
    assert {kind: counts["found"] for kind, counts in read.counts.items()} == {
        "image": 36,
        "group": 36,
    }
    expected = [f"a photo of the red {Path(image).stem}" for image in dataset.train.ids]
    assert list(read.texts["image"]) == list(read.texts["group"]) == expected


@pytest.mark.full
def test_a_run_with_what_was_imported(command_line, tmp_path):
    dummy_checkpoint().save(tmp_path / "weights")
    train.main(command_line)
    results = json.loads(Path("runs/labeled-latteclip-s0/results.json").read_text())
    assert {k: c["found"] for k, c in results["descriptions"].items()} == {"image": 36, "group": 36}


KEPT = ("--config=", "--config.dataset", "--config.descriptions.group_members")


def _dataset(command_line):
    return [a for a in command_line if a.startswith(KEPT)]


def test_texts_are_valid_unicode(tmp_path):
    config = make_set(tmp_path, ["cat/1.png"])
    folder = make_texts(tmp_path, {})
    (folder / "1.txt").write_bytes(b"cafe\xcc\x81 \x1b[2J with\0 a cat\r\n")
    imported = import_released(config, folder)
    assert found(imported.path) == {"train/cat/1.png": "caf\u00e9 [2J with a cat"}


@pytest.mark.parametrize("content", [b"x" * (command.MAX_TEXT_BYTES + 1), b"\xed\xa0\xbd"])
def test_texts_that_cannot_be_taken(tmp_path, content):
    config = make_set(tmp_path, ["cat/1.png"])
    folder = make_texts(tmp_path, {})
    (folder / "1.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"1\.txt: expected UTF-8 text"):
        import_released(config, folder)


def test_names_of_files_are_shown_as_text(tmp_path):
    config = make_set(tmp_path, ["cat/1.png"])
    folder = make_texts(tmp_path, {"1.txt": "a cat", "a\x1b[2J.txt": "a"})
    assert "\\x1b[2J.txt" in import_released(config, folder).report()
