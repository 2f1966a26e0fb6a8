"""The ten public sets: their configurations, and each from small copies of its files to results."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from captioning import describe
from lattec_jax import check_data, pseudo_label, train
from lattec_jax.data import datasets
from lattec_jax.runtime.config import artifacts_dir, parse
from lattec_jax.runtime.errors import DataError
from tests.builders import prepare
from tests.data.public_sets import SETS, TEST, TRAIN, VAL, content, make_tree
from tests.dummy import dummy_checkpoint

# Typed from the paper's and the released scripts' settings, not from the configurations:
# classes, train, test, paper's learning rate, released epochs, warm-up, released template.
SETTINGS = """
eurosat       |  10 | 18900 |  8100 | 1e-7 |  15 |  40 | a photo of a {}.
sun397        | 397 | 19850 | 19850 | 1e-6 |  15 |  40 | a photo of a {}.
food101       | 101 | 70700 | 30300 | 1e-6 |  15 | 140 | a photo of a {}, a type of food.
flowers102    | 102 |  5726 |  2463 | 1e-7 |  50 |  12 | a photo of a {}, a type of flower.
dtd           |  47 |  3948 |  1692 | 1e-7 | 100 |  10 | {} texture.
fgvc_aircraft | 100 |  6667 |  3333 | 1e-7 |  50 |  15 | a photo of a {}, a type of aircraft.
oxford_pets   |  37 |  3680 |  3669 | 1e-7 | 100 |  10 | a photo of a {}.
stanford_cars | 196 |  8144 |  8041 | 1e-7 |  50 |  20 | a photo of a {}.
ucf101        | 101 |  9537 |  3783 | 1e-7 |  50 |  20 | a photo of a person doing {}
caltech101    | 100 |  5777 |  2465 | 1e-7 |  50 |  10 | a photo of a {}.
"""
ROWS = [[cell.strip() for cell in line.split("|")] for line in SETTINGS.strip().splitlines()]

# Of each set, in full: the prompts for an image and a group, of the paper and of the released code.
BLOCKS = (Path(__file__).parent / "public_prompts.txt").read_text("utf-8").strip().split("\n\n")
PROMPTS = {name: prompts for name, *prompts in (block.split("\n") for block in BLOCKS)}


def config_of(name: str, *extra: str, options: str = ""):
    return parse(["train", f"--config=configs/{name}.py:{options}", *extra])[0]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_settings_of_both_presets(row):
    name, classes, n_train, n_test, rate, epochs, warmup, template = row
    paper, released = config_of(name), config_of(name, options="preset=released_code")
    for config in (paper, released):
        expected = config.dataset.expected
        assert (expected.classes, expected.train, expected.test) == (
            int(classes),
            int(n_train),
            int(n_test),
        )
        assert config.train.warmup_steps == int(warmup)
        assert config.train.batch_size == 512
        assert "KaiyangZhou/CoOp/blob/main/DATASETS.md#" in config.dataset.source
    assert (paper.train.learning_rate, released.train.learning_rate) == (float(rate), 1e-7)
    assert (paper.train.epochs, paper.train.max_steps) == (50, 2000)
    assert (released.train.epochs, released.train.max_steps > 10**5) == (int(epochs), True)
    assert paper.train.weight_decay == 0.2
    assert released.train.weight_decay == (1e-7 if name == "caltech101" else 0.2)
    assert (paper.templates, released.templates) == (("a photo of a {}.",), (template,))


@pytest.mark.parametrize("name", SETS)
def test_prompts_of_both_presets(name):
    paper = config_of(name).descriptions.prompts
    released = config_of(name, options="preset=released_code").descriptions.prompts
    assert [paper.image, paper.group, released.image, released.group] == PROMPTS[name]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to work in, with a checkpoint, and a data directory beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path / "data"))
    dummy_checkpoint(layers=1).save(tmp_path / "weights")
    return tmp_path


SHORT = (
    "--config.weights=weights",
    "--config.descriptions.engine=pixels",
    "--config.train.batch_size=8",
    "--config.train.max_steps=2",
    "--config.train.learning_rate=1e-7",  # the same for all, so that one compilation serves them
    "--config.checkpoint_every=2",
    "--config.log_every=1",
)


@pytest.mark.parametrize("name", SETS)
def test_files_are_found_and_only_read(place, capsys, name):
    make_tree(place / "data", name)
    before = content(place)
    check_data.main(["check_data", f"--config=configs/{name}.py"])
    assert content(place) == before
    shown = capsys.readouterr().out
    assert f"DATASETS.md#{config_of(name).dataset.source.partition('#')[2]}" in shown
    names = [spoken for _, _, spoken in SETS[name].classes]
    for spoken in names:
        assert spoken in shown
    dataset = datasets.load(config_of(name))
    assert list(dataset.class_names) == names
    assert (len(dataset.train.ids), len(dataset.test.ids)) == (3 * (TRAIN + VAL), 3 * TEST)
    assert dataset.protocol == "coop, inductive, last step"
    assert content(place) == before


@pytest.mark.full
@pytest.mark.parametrize("name", SETS)
def test_from_files_to_results(place, capsys, name):
    make_tree(place / "data", name)
    command = [f"--config=configs/{name}.py", *SHORT]
    names = [spoken for _, _, spoken in SETS[name].classes]
    describe_and_check_prompts(command, place / "artifacts" / name, PROMPTS[name][:2], names)
    if "{class}" in PROMPTS[name][2]:
        file = f"--config=configs/{name}.py:preset=released_code"
        released = [file, *SHORT, "--config.artifacts=released"]
        folder, prompts = place / "released" / name, PROMPTS[name][2:]
        describe_and_check_prompts(released, folder, prompts, names)
    capsys.readouterr()
    train.main(["train", *command])
    found = json.loads((place / f"runs/{name}-latteclip-s0/results.json").read_text("utf-8"))
    assert found["class_names"] == names
    assert (found["n_train"], found["n_test"]) == (3 * (TRAIN + VAL), 3 * TEST)
    assert found["protocol"] == "coop, inductive, last step"
    assert found["dataset"] == name and found["adapted"] is not None
    assert {kind: counts["found"] for kind, counts in found["descriptions"].items()} == {
        "image": 12,
        "group": 12,
    }
    assert f"{name}: 12 training images, 6 test images, 3 classes" in capsys.readouterr().out


def describe_and_check_prompts(
    command: list[str], artifacts: Path, prompts: list[str], names: list[str]
) -> None:
    """Describe; all images and groups were asked about with these prompts."""
    pseudo_label.main(["pseudo_label", *command])
    describe.main(["describe", *command])
    for file, prompt in zip(("pixels-image", "pixels-group-of-4"), prompts, strict=True):
        (path,) = (artifacts / "descriptions").glob(f"{file}*.jsonl")  # "-drawn" as released
        lines = path.read_text("utf-8").splitlines()
        requested = [json.loads(line)["prompt"] for line in lines]
        assert len(requested) == 3 * (TRAIN + VAL)
        assert set(requested) <= {prompt.replace("{class}", name) for name in names}


def test_a_share_of_the_training_images_has_its_own_artifacts(place):
    make_tree(place / "data", "dtd")
    fraction = ["--config.weights=weights", "--config.dataset.train_fraction=0.7"]
    pseudo_label.main(["pseudo_label", "--config=configs/dtd.py", *fraction])
    config = config_of("dtd", *fraction)
    assert artifacts_dir(config).as_posix() == "artifacts/dtd/fraction-0.7"
    labels = next((place / artifacts_dir(config) / "pseudo_labels").glob("*.jsonl"))
    assert labels.read_text("utf-8").count('"image"') == 8
    assert [path.name for path in (place / "artifacts/dtd").iterdir()] == ["fraction-0.7"]


def test_train_names_what_is_missing_first(place):
    root = make_tree(place / "data", "ucf101")
    (root / "split_zhou_UCF101.json").unlink()
    (root / "UCF-101-midframes").rename(root / "midframes")
    with pytest.raises(DataError) as caught:
        train.main(["train", "--config=configs/ucf101.py", *SHORT])
    assert "no split file" in str(caught.value) and "no image folder" in str(caught.value)
    assert not (place / "artifacts").exists() and not (place / "runs").exists()


@pytest.mark.full
def test_from_a_builder_of_tensorflow_datasets_to_results(place):
    tree = prepare("dtd", place)
    tree.parent.rename(place / "data")
    shutil.rmtree(place / "data/dtd/images")
    extra = [
        "--config.dataset.kind=tfds",
        "--config.dataset.tfds.builder=small_dtd",
        "--config.dataset.tfds.data_dir=tfds",
    ]
    train.main(
        ["train", "--config=configs/dtd.py", *SHORT, *extra, "--config.method.texts=('class',)"]
    )
    found = json.loads((place / "runs/dtd-latteclip-s0/results.json").read_text("utf-8"))
    assert found["protocol"] == "coop split, images of small_dtd/1.0.0, inductive, last step"
    assert (found["n_train"], found["n_test"]) == (12, 6)
    assert "tensorflow" not in sys.modules
