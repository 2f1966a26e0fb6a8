"""LLaVA zero-shot: requests, results, and no request twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from captioning import classify as command
from captioning.classify import classify, classify_shard, make_tasks
from captioning.engines import ENGINES, Failure, Identity
from captioning.shards import Shard, shard_paths
from lattec_jax import train
from lattec_jax.data import datasets
from lattec_jax.data.descriptions import descriptions_path, records
from lattec_jax.runtime.errors import ConfigError, DataError
from tests.captioning.ruler import make_config, write_config_file
from tests.dummy import dummy_checkpoint
from tests.runs import arguments, make_images

TRUE = ["cat", "cat", "dog", "dog", "cat", "dog"]
ANSWERS = ["cat", "A Cat.", "dog or cat", "catt", "dgo", "no idea"]
PROMPT = (
    "Select the most appropriate category for the image from the following options:cat, dog. "
    "Write only the category name."
)


class Says:
    """Answers by the width of the image."""

    def __init__(self, answers=ANSWERS, model="1", fails=()) -> None:
        self.identity = Identity("says", model, "greedy")
        self.answers, self.fails = answers, fails
        self.requests = []

    def describe(self, wanted):
        for request in wanted:
            self.requests.append(request)
            number = request.images[0].width - 1
            yield request, Failure("no voice") if number in self.fails else self.answers[number]


def identity(config):
    return Says().identity


def load(config):
    return Says()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Six test images with labels; one training image."""
    monkeypatch.setitem(ENGINES, "says", "tests.captioning.test_classify")
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, 6)
    root = Path(config.dataset.root)
    (root / "test").mkdir()
    for path in sorted(root.glob("*.png")):
        path.rename(root / "test" / path.name)
    (root / "train").mkdir()
    Image.new("L", (9, 9)).save(root / "train" / "only.png")
    rows = "".join(f"test/{i:02d}.png,{name}\n" for i, name in enumerate(TRUE))
    (tmp_path / "labels.csv").write_text("image,label\n" + rows)
    config.dataset.labels = str(tmp_path / "labels.csv")
    config.descriptions.engine = "says"
    return config


def predictions(directory):
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]


def test_requests_and_results(config, tmp_path):
    engine = Says()
    found = classify(config, None, engine)
    assert [request.image_id for request in engine.requests] == [
        f"test/{i:02d}.png" for i in range(6)
    ]
    assert {request.prompt for request in engine.requests} == {PROMPT}
    directory = tmp_path / "runs/mine-llava_zero_shot-s0"
    assert json.loads((directory / "results.json").read_text()) == found
    # Right: "cat" (0) and "A Cat." (1). "catt" (3) and "dgo" (4) are the other class.
    assert found["adapted"] == {"top1": pytest.approx(2 / 6), "top5": None}
    assert found["zero_shot"] is None
    assert found["per_class"] == {"zero_shot": None, "adapted": [pytest.approx(2 / 3), 0.0]}
    counts = {"exact": 1, "normalized": 1, "closest": 2, "unmatched": 2, "failed": 0}
    unmatched = [
        {"image": "test/02.png", "answer": "dog or cat"},
        {"image": "test/05.png", "answer": "no idea"},
    ]
    assert found["answers"] == {**counts, "first_unmatched": unmatched}
    assert found["label_free"]["class_fractions"] == [0.75, 0.25]
    assert [(p["class"], p["how"]) for p in predictions(directory)] == [
        ("cat", "exact"),
        ("cat", "normalized"),
        (None, "unmatched"),
        ("cat", "closest"),
        ("dog", "closest"),
        (None, "unmatched"),
    ]
    assert found["method"] == "llava_zero_shot" and found["model"] == "1"
    assert (found["n_test"], found["weights"], found["class_names"]) == (6, None, ["cat", "dog"])
    assert "33.3%" in found["table"] and "66.7%" in found["table"]


@pytest.mark.parametrize("method", ["zero_shot", pytest.param("flyp", marks=pytest.mark.full)])
def test_the_keys_are_those_of_a_run(config, tmp_path, method):
    make_images(tmp_path / "labeled", 3, labeled=True)
    shutil.rmtree(tmp_path / "weights")  # a stand-in
    dummy_checkpoint().save(tmp_path / "weights")
    train.main(arguments("labeled", f":method={method}"))
    trained = json.loads((tmp_path / f"runs/labeled-{method}-s0/results.json").read_text())
    found = classify(config, None, Says())
    assert trained.keys() <= found.keys()
    for key in ("per_class", "label_free", "adapted"):
        assert found[key].keys() == trained[key].keys()


def test_answers_are_reused_for_the_same_images_names_and_model(config, tmp_path):
    before = classify(config, None, Says())
    again = Says()
    assert classify(config, None, again) == before and not again.requests
    Image.new("L", (5, 3)).save(Path(config.dataset.root) / "test" / "00.png")
    classify(config, None, again)
    assert [request.image_id for request in again.requests] == ["test/00.png"]
    other = Says(model="2")
    with pytest.raises(ConfigError, match=r"started with other inputs[\s\S]*engine: was"):
        classify(config, None, other)
    classify(config, tmp_path / "two", other)
    assert len(other.requests) == 6
    names = Path(config.dataset.class_names)
    names.write_text("cat\ndog\ncow\n")
    third = Says(model="2")
    classify(config, tmp_path / "three", third)
    assert len(third.requests) == 6 and "cat, dog, cow." in third.requests[0].prompt
    config.descriptions.max_new_tokens = 20
    with pytest.raises(ConfigError, match=r"max_new_tokens: was 77, is now 20"):
        classify(config, tmp_path / "three", third)


def test_synonyms_count_and_are_not_offered(config):
    Path(config.dataset.class_names).write_text("cat | felid\ndog | hound\n")
    engine = Says(["felid", "Felids", "the hound", "dog", "hound", "houn d"])
    found = classify(config, None, engine)
    assert engine.requests[0].prompt == PROMPT
    assert found["adapted"]["top1"] == pytest.approx(5 / 6)
    assert found["per_class"]["adapted"] == [pytest.approx(2 / 3), 1.0]


def test_failures_count_as_wrong_and_are_tried_again(config, tmp_path):
    (Path(config.dataset.root) / "test" / "01.png").write_bytes(b"no image")
    found = classify(config, None, Says(TRUE, fails=[2]))
    assert found["adapted"]["top1"] == pytest.approx(4 / 6)
    assert list(found["failed"]) == found["unreadable"] == ["test/01.png", "test/02.png"]
    assert "not an image" in found["failed"]["test/01.png"]
    assert found["answers"]["failed"] == 2 and found["answers"]["first_unmatched"] == []
    listed = predictions(tmp_path / "runs/mine-llava_zero_shot-s0")[2]
    assert listed == {
        "image": "test/02.png", "answer": None, "class": None, "how": "failed", "error": "no voice",
    }  # fmt: skip
    rest = Says(TRUE)
    assert classify(config, None, rest)["adapted"]["top1"] == pytest.approx(5 / 6)
    assert [request.image_id for request in rest.requests] == ["test/02.png"]


def test_no_readable_image(config, tmp_path):
    for path in (Path(config.dataset.root) / "test").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 6 test images could be classified"):
        classify(config, None, Says())
    assert not (tmp_path / "runs").exists()


def test_without_labels_there_are_predictions(config, tmp_path):
    config.dataset.labels = "none"
    found = classify(config, tmp_path / "out", Says())
    assert found["adapted"] is None and found["per_class"]["adapted"] is None
    assert [p["class"] for p in predictions(tmp_path / "out")][:2] == ["cat", "cat"]
    assert "75.0%" in found["table"] and "there are no labels" in found["table"]


def test_without_a_single_match(config):
    found = classify(config, None, Says([""] * 6))
    assert found["adapted"]["top1"] == 0 and found["answers"]["unmatched"] == 6
    assert found["label_free"]["class_fractions"] == [0, 0]


def test_without_test_images(config):
    for path in (Path(config.dataset.root) / "test").iterdir():
        path.unlink()
    (Path(config.dataset.root) / "test").rmdir()
    config.dataset.test = ""
    config.dataset.labels = "none"
    with pytest.raises(DataError, match=r"no test images.*config\.dataset\.held_out_fraction"):
        classify(config, None, Says())


def test_shards_together_equal_one_run(config):
    whole = classify(config, None, Says())
    path = descriptions_path(config, "category")
    for shard in shard_paths(path):
        shard.unlink()
    dataset = datasets.load(config)
    tasks = make_tasks(config, dataset, Says().identity)
    engines = [Says() for _ in range(2)]
    for number in (1, 0):
        classify_shard(config, tasks, engines[number], Shard(number, 2))
    assert [len(engine.requests) for engine in engines] == [3, 3]
    assert {record.kind for shard in shard_paths(path) for record in records(shard)} == {"category"}
    rest = Says()
    assert classify(config, None, rest) == whole and not rest.requests


def test_the_command(config, tmp_path, capsys):
    write_config_file(config, tmp_path / "mine.py")
    content = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(content.replace("'ruler'", "'says'"))
    called = ["classify", f"--config={tmp_path / 'mine.py'}"]
    command.main([*called, "--shard=1/2"])
    assert "shard 1 of 2: 3 answered, 0 failed" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    command.main(called)
    printed = capsys.readouterr().out
    assert "answers: exact 1, normalized 1, closest 2, unmatched 2, failed 0" in printed
    assert "unmatched: test/02.png: 'dog or cat'" in printed and "top1" in printed
    assert (tmp_path / "runs/mine-llava_zero_shot-s0/config.json").exists()
    with pytest.raises(ConfigError, match=r"method\.name: was 'llava_zero_shot'"):
        train.main(["train", *called[1:], "--workdir=runs/mine-llava_zero_shot-s0"])
