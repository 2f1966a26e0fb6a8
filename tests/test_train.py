"""Whole runs on folders of images, with a CLIP of one layer."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lattec_jax import evaluate, predict, train, train_loop
from lattec_jax.runtime import sharding
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError, DataError, TrainingError
from lattec_jax.training import input_pipeline, prepare
from lattec_jax.training.metrics_log import RunLog
from tests.runs import (
    CLASSES,
    arguments,
    assert_equal,
    base_model,
    logged,
    make_images,
    model_of,
    run,
)

AS_FIRST = ("labeled", "--config.eval_every=3")  # as the finished run `first` of `trained`


def test_a_labeled_folder_from_images_to_predictions(trained, capsys):
    directory = trained / "first"
    found = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    contract = (
        "method preset dataset protocol model weights weights_sha256 weights_source "
        "descriptions_sha256 seed n_left_out "
        "steps alpha momentum learning_rate class_names template n_train n_test zero_shot adapted "
        "train_seconds images_per_second device version"
    )
    assert set(contract.split()) <= found.keys()
    assert (found["n_train"], found["n_test"], found["steps"]) == (36, 36, 6)
    assert 0 <= found["zero_shot"]["top1"] <= found["zero_shot"]["top5"] == 1
    assert found["class_names"] == list(CLASSES)
    assert found["descriptions"]["image"]["found"] == 36
    lines = logged(directory)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"test_top1", "test_top5", "test_class/dog", "loss"} <= lines[2].keys()

    capsys.readouterr()
    evaluate.main(["evaluate", f"--workdir={directory}"])
    assert capsys.readouterr().out.strip() == found["table"]

    predict.main(["predict", f"--workdir={directory}", "--format=jsonl", "--top=2", "labeled/test"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 36
    right = np.mean([Path(line["image"]).parent.name == line["class"] for line in lines])
    assert right == pytest.approx(found["adapted"]["top1"])
    assert all(len(line["top"]) == 2 and line["score"] == line["top"][0]["score"] for line in lines)

    (trained / "labeled/test/torn.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit) as ended:
        predict.main(["predict", f"--workdir={directory}", "labeled/test"])
    shown = capsys.readouterr()
    assert ended.value.code == 1 and "torn.jpg" in shown.err
    assert len(shown.out.splitlines()) == 36
    (trained / "labeled/test/torn.jpg").unlink()

    # The same command again shows the finished run; another configuration is refused.
    assert run(*AS_FIRST, "--workdir=first") == found
    results = directory / "results.json"
    whole = results.read_bytes()
    for content in (whole[: len(whole) // 2], b"{}"):
        results.write_bytes(content)
        with pytest.raises(DataError, match=r"results\.json.* damaged.*Move it away"):
            train.main(arguments(*AS_FIRST, "--workdir=first"))
        assert results.read_bytes() == content
    results.write_bytes(whole)
    with pytest.raises(ConfigError, match=r"method\.alpha: was 0\.99, is now 0\.5"):
        train.main(arguments(*AS_FIRST, "--workdir=first", "--config.method.alpha=0.5"))


def test_a_folder_without_labels(place):
    found = run("unlabeled", "--config.dataset.labels=none")
    assert found["zero_shot"] is None and found["adapted"] is None
    metrics = found["label_free"]
    assert 0 <= metrics["label_agreement"] <= 1
    assert sum(metrics["class_fractions"]) == pytest.approx(1)
    assert len(metrics["prototype_drift"]) == len(CLASSES)
    assert max(metrics["prototype_drift"]) > 0


@pytest.mark.full
def test_labels_of_the_training_images_change_nothing(place):
    """An unsupervised method gives the same model whether or not labels are there."""
    (place / "labels.csv").write_text(
        "image,label\n"
        + "".join(
            f"{p.relative_to(place / 'unlabeled').as_posix()},{CLASSES[i % 3]}\n"
            for i, p in enumerate(sorted((place / "unlabeled").rglob("*.*")))
            if p.suffix != ".txt"
        ),
        encoding="utf-8",
    )
    run("unlabeled", "--workdir=without")
    run("unlabeled", "--workdir=with", "--config.dataset.labels=labels.csv")
    assert_equal(place / "without", place / "with")


def test_a_run_is_not_continued_with_other_data(trained):
    command = (*AS_FIRST, "--workdir=first")
    (trained / "labeled/classes.txt").write_text("dog\ncat\nbird\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"started with other inputs[\s\S]*class_names: was"):
        run(*command)
    with pytest.raises(DataError, match="was trained on the classes cat, dog, bird"):
        evaluate.main(["evaluate", "--workdir=first"])
    (trained / "labeled/classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    Image.new("RGB", (20, 20)).save(trained / "labeled/train/cat/c001.png")
    with pytest.raises(ConfigError, match=r"started with other inputs[\s\S]*training_images"):
        run(*command)


@pytest.mark.full
def test_a_run_that_diverges_stops_and_saves_nothing_of_it(place):
    with pytest.raises(TrainingError, match=r"the loss is \S+ at step \d.*Lower --config\.train"):
        run("labeled", "--config.train.learning_rate=1e30")
    directory = place / "runs/labeled-latteclip-s0"
    assert not (directory / "results.json").exists()
    saved = [int(p.name) for p in (directory / "checkpoints").iterdir() if p.name.isdigit()]
    assert all(step <= 2 for step in saved)


def test_descriptions_of_a_part_of_the_images_are_refused(trained):
    path = next((trained / "artifacts/labeled/descriptions").glob("pixels-image.jsonl"))
    half = path.read_text(encoding="utf-8").splitlines(keepends=True)[:18]
    (path.parent / "mine-image.jsonl").write_text("".join(half), encoding="utf-8")
    with pytest.raises(DataError, match=r"18 of 36 images have no image description.*50\.0%"):
        train.main(
            arguments(
                "labeled", "--config.descriptions.engine=mine", "--config.method.texts=('image',)"
            )
        )


def test_an_interrupted_run_continues_as_if_nothing_had_been(trained, monkeypatch):
    written = RunLog.write

    def interrupt(self, step, metrics):
        written(self, step, metrics)
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(*AS_FIRST, "--workdir=broken")
    assert not (trained / "broken/results.json").exists()
    monkeypatch.setattr(RunLog, "write", written)
    run(*AS_FIRST, "--workdir=broken")
    assert_equal(trained / "first", trained / "broken")


@pytest.mark.parametrize(
    "method",
    [*(pytest.param(m, marks=pytest.mark.full) for m in ("flyp", "flyp_oracle")), "zero_shot"],
)
def test_other_methods(trained, method):
    found = run("labeled", f":method={method}")
    assert found["method"] == method
    assert found["steps"] == (0 if method == "zero_shot" else 6)
    base, adapted = base_model().params, model_of(trained / f"runs/labeled-{method}-s0")
    still = {name for name in base if np.array_equal(base[name], adapted[name])}
    assert still == (base.keys() if method == "zero_shot" else set())
    if method == "zero_shot":
        assert found["zero_shot"] == found["adapted"]


@pytest.mark.full
def test_the_released_preset_and_a_streamed_store(place):
    found = run("labeled", ":preset=released_code", "--config.image_cache.placement=host")
    assert (found["preset"], found["momentum"], found["steps"]) == ("released_code", 0.0, 6)


def test_what_is_missing_is_said(trained, all_devices):
    message = r"python -m captioning\.describe --config=configs/folder\.py --config\.d"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match=message):
        patch.setattr(prepare, "content_hashes", None)  # it is said before all images are read
        train.main(arguments("labeled", "--config.descriptions.engine=llava"))
    assert not (trained / "runs").exists()  # nothing was claimed for a run that cannot start
    with pytest.raises(DataError, match="flyp_oracle trains with true labels"):
        train.main(arguments("unlabeled", ":method=flyp_oracle"))
    with pytest.raises(ConfigError, match=r"config\.weights: expected a converted directory"):
        train.main(arguments("labeled", "--config.weights="))
    with pytest.raises(ConfigError, match="multiple of the 8 devices"):
        train.main(arguments("labeled", "--config.train.batch_size=20"))
    with pytest.raises(ConfigError, match=r"config\.log_every: expected .* from 1 .*, found 0"):
        train.main(arguments("labeled", "--config.log_every=0"))
    with pytest.raises(ConfigError, match=r"config\.seed: .* from 0 to 4294967295, found -1"):
        train.main(arguments("labeled", "--config.seed=-1"))
    with pytest.raises(ConfigError, match=r"config\.augment\.flip_probability: expected"):
        train.main(arguments("labeled", "--config.augment.flip_probability=2"))
    with pytest.raises(ConfigError, match="Did you mean 'latteclip'"):
        train.main(arguments("labeled", ":method=lateclip"))


def test_a_set_smaller_than_the_batch_makes_the_batch_its_own_size(trained, capsys):
    command = ("labeled", "--config.train.batch_size=512", ":method=zero_shot")
    found = run(*command)
    assert found["batch_size"] == 36
    assert "batch of 36 instead of 512" in capsys.readouterr().out
    config, eight = parse(arguments(*command))[0], sharding.make_mesh(devices=jax.devices())
    assert input_pipeline.choose_batch_size(config, 36, eight) == 32


@pytest.mark.parametrize("method", ["zero_shot", pytest.param("latteclip", marks=pytest.mark.full)])
def test_a_class_without_images_is_trained_with_and_reported(place, method):
    names = place / "labeled" / "classes.txt"
    names.write_text(names.read_text() + "fish\n")
    found = run("labeled", f":method={method}")
    assert found["class_names"][3] == "fish"
    assert found["per_class"]["adapted"][3] is None and found["per_class"]["adapted"][0] is not None
    assert "no images" in found["table"]
    assert len(found["label_free"]["class_fractions"]) == 4


@pytest.mark.full
def test_one_program_trains_the_model_which_the_devices_hold_once(trained, monkeypatch):
    """With AdamW's two moments, and nothing of what it was made of or is compared with later."""
    shape = base_model().params["text/token_embedding"].shape
    make, found, steps = train_loop.make_train_step, [], []

    def alive() -> int:
        return sum(array.shape == shape for array in jax.live_arrays())

    def make_counting(*settings):
        steps.append(step := make(*settings))

        def counting(*inputs):
            found.append(alive() - before)
            return step(*inputs)

        counting.lower = step.lower
        return counting

    gc.collect()
    before = alive()
    monkeypatch.setattr(train_loop, "make_train_step", make_counting)
    run("labeled", "--config.wise_ft=0.5", "--config.checkpoint_every=10")
    assert found == [3] * 6
    (step,) = steps
    assert step._cache_size() == 1  # of the first state and of what a step made


@pytest.mark.full
def test_other_alphabets_in_the_c_locale(tmp_path):
    """The whole command in an environment that knows ASCII only."""
    root = tmp_path / "Bilder 猫"
    make_images(root, 8, labeled=False)
    for number, path in enumerate(sorted((root / "train").iterdir())):
        path.rename(path.with_name(f"été {number} кот{path.suffix}"))
    (root / "classes.txt").write_text("猫\nсобака\noiseau\n", encoding="utf-8")
    base_model().save(tmp_path / "Gewichte ü")
    short = ("--config.train.max_steps=1", "--config.checkpoint_every=1")
    command = arguments("Bilder 猫", "--config.dataset.name=mine", "--workdir=Lauf é", *short)
    command = [argument.replace("=weights", "=Gewichte ü") for argument in command]
    environment = {**os.environ, "LC_ALL": "C"}
    environment.pop("PYTHONIOENCODING", None)

    def run_in(environment: dict[str, str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "lattec_jax.train", *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
        )

    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert b"set PYTHONUTF8=1" in run_in(environment | ascii_only).stderr
    result = run_in(environment)
    assert result.returncode == 0, result.stderr.decode(errors="replace")[-2000:]
    results = json.loads((tmp_path / "Lauf é" / "results.json").read_text(encoding="utf-8"))
    assert results["class_names"] == ["猫", "собака", "oiseau"]
    texts = tmp_path / "artifacts" / "mine" / "descriptions" / "pixels-image.jsonl"
    assert "été 0 кот".encode() in texts.read_bytes()
