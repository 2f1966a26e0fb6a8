"""`lattec_jax.adapt` and its command: the same run as `train`, without a configuration file."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lattec_jax as lj
from lattec_jax import train, train_loop
from lattec_jax.adaptation import adapt, describing
from lattec_jax.data.descriptions import records
from lattec_jax.runtime.errors import ConfigError, DataError, EngineError
from lattec_jax.training.metrics_log import RunLog
from tests.captioning.chat_server import MODEL, ChatServer, status
from tests.runs import CLASSES

SHORT = {
    "train.batch_size": 16,
    "train.max_steps": 4,
    "train.learning_rate": 1e-3,
    "checkpoint_every": 2,
    "log_every": 1,
    "image_cache.max_side": 24,
}


def test_importing_costs_no_jax():
    code = "import sys, lattec_jax; lattec_jax.adapt; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert lj.adapt is adapt


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C to this process when a step is logged."""
    write = RunLog.write

    def interrupted(self, at, metrics):
        write(self, at, metrics)
        if at == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "write", interrupted)


def test_a_folder_becomes_a_classifier_and_an_interrupted_call_continues(
    place, monkeypatch, capsys
):
    (place / "unlabeled/train/broken.jpg").write_bytes(b"torn")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def call(classes=CLASSES, **changes):
        given = {"weights": "weights", "test": "labeled/test", "settings": SHORT, **changes}
        return lj.adapt("unlabeled/train", classes, **given)

    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(KeyboardInterrupt, match="the last step is saved"):
            call()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    classifier = call()
    shown = capsys.readouterr().out
    assert "\n36 of 37 images from" in shown  # those that can be read
    assert "\nweights: weights\n" in shown
    assert "\ntraining on 36 images; 1 cannot be read\n" in shown
    assert "train.warmup_steps = 0: as at the start of the run" in shown
    assert "continuing at step 3 of 4" in shown and "accuracy on 36 test images" in shown
    assert "method.alpha = 0.01: 0.99^(1800 / 4), because the run is shorter" in shown
    directory = Path("runs/train-latteclip-s0")
    assert classifier.directory == directory
    assert shown.splitlines()[-2:] == [
        f"report in {directory / 'report.html'}",
        f"next: python -m lattec_jax.predict --workdir={directory} IMAGE_OR_FOLDER ...",
    ]
    found = json.loads((directory / "results.json").read_text())
    assert (found["n_train"], found["n_test"], found["descriptions"]) == (36, 36, None)
    assert (found["alpha"], found["steps"], found["template"]) == (0.01, 4, "a photo of a {}.")
    predictions = classifier.predict("labeled/test/cat/*.jpg")
    assert len(predictions) == 4 and set(p.name for p in predictions) <= set(CLASSES)
    assert classifier.report() == directory / "report.html"

    # A finished run is returned as it is; other arguments are refused, with the keys.
    before = (directory / "model/model.safetensors").stat().st_mtime_ns
    assert call(progress=False).predict("labeled/test/cat/*.jpg") == predictions
    assert lj.Classifier.load(directory).predict("labeled/test/cat/*.jpg") == predictions
    assert (directory / "model/model.safetensors").stat().st_mtime_ns == before
    other = {**SHORT, "method.momentum": 0.5}
    with pytest.raises(ConfigError, match=r"Differing keys:[\s\S]*method\.momentum: was 0\.01"):
        call(settings=other)
    with pytest.raises(ConfigError, match=r"Differing keys:[\s\S]*dataset\.class_names: was"):
        call(classes=CLASSES[::-1])
    # The command `train` takes the run too: the lock is free, and these are all values.
    given = {}

    def note(config, directory, arguments, describe):
        given["arguments"] = shlex.split(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "train", note)
        call()
    capsys.readouterr()
    train.main(["train", *given["arguments"], f"--workdir={directory}"])
    assert f"{directory} holds a finished run" in capsys.readouterr().out


class Captioner:
    """Describes by the mean color; keeps what it was given."""

    identity = "mean-1"

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images: list[Image.Image]) -> list[str]:
        self.sizes += [image.size for image in images]
        return [f"red {np.asarray(image)[..., 0].mean():.0f}" for image in images]


def test_a_function_describes_and_is_not_asked_twice(place, monkeypatch, capsys):
    def run_here(module: str, arguments: Sequence[str], progress: bool) -> None:
        assert progress
        importlib.import_module(module).run([module, *arguments])

    monkeypatch.setattr(describing, "_run", run_here)  # a process takes seconds to start
    captioner = Captioner()
    paths = sorted(Path("unlabeled/train").iterdir())
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    settings = {**SHORT, "train.max_steps": 0}  # nothing is compiled for training

    def call(**changes):
        given = {"weights": "weights", "descriptions": captioner, "settings": settings, **changes}
        return adapt(arrays, CLASSES, **given)

    def half(images: list[Image.Image]) -> list[str]:
        return ["text"] * (len(images) // 2)

    def some(images: list[Image.Image]) -> list[str]:
        return ["text" if n else "" for n in range(len(images))]

    with pytest.raises(EngineError, match=r"function-half returned 4 texts for 8 images"):
        call(descriptions=half)
    with pytest.raises(DataError, match="return a text for each image, and call adapt again"):
        call(descriptions=some)
    call()
    assert "python -m lattec_jax.train" not in capsys.readouterr().out
    assert len(captioner.sizes) == 72
    assert sorted(captioner.sizes[:36]) == sorted(array.shape[1::-1] for array in arrays)
    assert captioner.sizes[36:] == [(672, 672)] * 36  # collages
    (stored,) = Path("artifacts").glob("images-*/descriptions/function-Captioner-*-image.jsonl")
    record = next(records(stored))
    assert (record.engine, record.model) == ("function-Captioner-84a7b609", "mean-1")
    assert re.fullmatch(r"red \d+", record.text)
    assert call().class_names == CLASSES and len(captioner.sizes) == 72
    captioner.identity = "mean-2"
    with pytest.raises(ConfigError, match=r"Differing keys:[\s\S]*descriptions\.engine: was"):
        call()


@pytest.mark.full
def test_a_server_describes_in_a_process_of_its_own(place):
    """From the address alone: model list, pseudo-labels, descriptions, training, results."""
    server = ChatServer()
    try:
        classifier = adapt(
            "unlabeled/train", CLASSES, weights="weights", descriptions=server.url, settings=SHORT
        )
    finally:
        server.stop()
    found = json.loads((classifier.directory / "results.json").read_text())
    assert found["descriptions"]["image"]["found"] == found["descriptions"]["group"]["found"] == 36
    (stored,) = Path("artifacts/train/descriptions").glob("openai-image.jsonl")
    assert next(records(stored)).model == MODEL
    assert found["zero_shot"] is None and "fraction of 36 images" in found["table"]


@pytest.mark.full
def test_errors_of_the_other_process_arrive(place):
    server = ChatServer()
    server.always = status(401, "no access")
    try:
        with pytest.raises(EngineError, match="refuses access"):
            adapt(
                "unlabeled/train",
                CLASSES,
                weights="weights",
                descriptions=server.url,
                settings=SHORT,
            )
    finally:
        server.stop()
    assert not Path("runs/train-latteclip-s0/results.json").exists()


@pytest.mark.full
def test_the_command_from_photos_to_predictions(place):
    """In processes of their own, as a user types it."""
    (place / "unlabeled/train/broken.jpg").write_bytes(b"torn")
    flags = ["--classes=unlabeled/classes.txt", "--weights=weights", "--workdir=runs/mine"]
    settings = [f"--config.{key}={value}" for key, value in SHORT.items()]
    command = [sys.executable, "-m", "lattec_jax", "adapt", "unlabeled/train", *flags, *settings]
    for warned in (True, False):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert bool(re.search(r"1 of 37 images .*broken\.jpg", done.stderr)) == warned
        assert "fraction of 36 images per predicted class" in done.stdout
    last = done.stdout.splitlines()[-1].partition(": ")[2].split()
    assert last[:3] == ["python", "-m", "lattec_jax.predict"]
    predict = [sys.executable, *last[1:-2], "labeled/test/cat"]
    done = subprocess.run(predict, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 12
