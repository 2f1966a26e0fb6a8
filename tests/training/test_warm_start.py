"""Training that starts where another run, or other weights, ended."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from lattec_jax import train
from lattec_jax.data.text.word_level import word_tokenizer
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.runtime.errors import ConfigError, WeightsError
from lattec_jax.training import checkpoints, warm_start
from tests.dummy import WORDS
from tests.runs import arguments, base_model, classifier_of, logged, run
from tests.test_train_methods import RECLIP

NONE = "--config.train.max_steps=0"


def bytes_of(directory: Path) -> tuple[bytes, bytes]:
    """The model and the class weights that a run left."""
    files = ("model/model.safetensors", "classifier.safetensors")
    return tuple((directory / file).read_bytes() for file in files)


def vectors_of(directory: Path) -> np.ndarray:
    return classifier_of(directory)["classifier"]


@pytest.mark.full
def test_no_step_from_a_run_gives_that_run(trained):
    first = json.loads((trained / "first/results.json").read_text(encoding="utf-8"))
    again = run("labeled", "--workdir=again", "--config.init=first", NONE)
    assert (again["adapted"], again["zero_shot"]) == (first["adapted"], first["zero_shot"])
    assert again["label_free"] == first["label_free"]
    assert bytes_of(trained / "first") == bytes_of(trained / "again")
    assert (again["init"], again["init_prototypes"], again["steps"]) == ("first", True, 0)
    inputs = json.loads((trained / "again/inputs.json").read_text(encoding="utf-8"))
    assert inputs["init_sha256"] == again["init_sha256"] and len(again["init_sha256"]) == 64
    assert first["init"] is None and first["init_sha256"] is None


def test_a_run_goes_on_from_a_run_or_from_its_saved_step(trained):
    run("labeled", "--workdir=second", "--config.init=first")
    run("labeled", "--workdir=step", "--config.init=first/checkpoints/6")
    assert bytes_of(trained / "second") == bytes_of(trained / "step")
    run("labeled", "--workdir=earlier", "--config.init=first/checkpoints/4")
    assert bytes_of(trained / "earlier") != bytes_of(trained / "second")
    # Steps from another place are other steps, and the second moves on from the first.
    assert bytes_of(trained / "second") != bytes_of(trained / "first")
    lines = [logged(trained / d)[0] for d in ("first", "second")]
    assert lines[0]["loss"] != lines[1]["loss"]


@pytest.mark.full
def test_weights_have_no_prototypes_and_those_of_weights_change_nothing(trained):
    found = run("labeled", "--workdir=towers", "--config.init=first/model", NONE)
    assert not found["init_prototypes"]
    assert bytes_of(trained / "towers")[0] == bytes_of(trained / "first")[0]
    assert not np.allclose(vectors_of(trained / "towers"), vectors_of(trained / "first"), atol=1e-4)
    # The vectors are the class texts as the start's text tower encodes them: FLYP's classifier.
    run("labeled", "--workdir=flyp", "--config.init=first", NONE, ":method=flyp")
    np.testing.assert_array_equal(vectors_of(trained / "towers"), vectors_of(trained / "flyp"))
    run("labeled", "--workdir=same", "--config.init=weights")
    assert bytes_of(trained / "same") == bytes_of(trained / "first")


@pytest.mark.full
def test_a_step_of_a_method_without_prototypes(trained):
    run("labeled", "--workdir=flyp", ":method=flyp")
    found = run("labeled", "--workdir=on", NONE, "--config.init=flyp/checkpoints/6")
    assert not found["init_prototypes"]
    assert bytes_of(trained / "on")[0] == bytes_of(trained / "flyp")[0]


@pytest.mark.full
def test_two_models_give_their_adapted_one(trained):
    run("labeled", "--workdir=reclip", *RECLIP)
    run("labeled", "--workdir=run", NONE, "--config.init=reclip")
    run("labeled", "--workdir=step", NONE, "--config.init=reclip/checkpoints/6")
    assert bytes_of(trained / "run") == bytes_of(trained / "step")
    assert bytes_of(trained / "run")[0] == bytes_of(trained / "reclip")[0]
    np.testing.assert_array_equal(vectors_of(trained / "run"), vectors_of(trained / "reclip"))


def test_other_classes_keep_the_parameters_alone(trained, capsys):
    (trained / "labeled/classes.txt").write_text("cat\ndog\nbird\nred\n", encoding="utf-8")
    found = run("labeled", "--workdir=other", "--config.init=first", NONE)
    assert "first has other classes" in capsys.readouterr().out
    assert not found["init_prototypes"]
    assert bytes_of(trained / "other")[0] == bytes_of(trained / "first")[0]


def test_a_start_that_changed_is_not_continued(trained):
    run("labeled", "--workdir=second", "--config.init=first")
    changed = vectors_of(trained / "first")[::-1].copy()
    safetensors.numpy.save_file({"classifier": changed}, trained / "first/classifier.safetensors")
    with pytest.raises(ConfigError, match=r"started with other inputs[\s\S]*init_sha256: was"):
        run("labeled", "--workdir=second", "--config.init=first")


def test_what_cannot_be_started_from(trained):
    with pytest.raises(WeightsError, match=r"config\.init: expected .* found 'nowhere'"):
        train.main(arguments("labeled", "--config.init=nowhere"))
    with pytest.raises(WeightsError, match="no step 7 in first/checkpoints; saved there: 4, 6"):
        train.main(arguments("labeled", "--config.init=first/checkpoints/7"))
    array = next(p for p in (trained / "first/checkpoints/4/state/d").iterdir())
    array.write_bytes(array.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"checkpoints/4 cannot be used: state/d/.* is not as"):
        train.main(arguments("labeled", "--config.init=first/checkpoints/4"))
    (trained / "first/classifier.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"not finished[\s\S]*first/checkpoints/STEP"):
        train.main(arguments("labeled", "--config.init=first"))


def test_another_model_is_refused(trained):
    base = base_model()
    others = {
        "architecture": dataclasses.replace(
            base, config=dataclasses.replace(base.config, quick_gelu=True)
        ),
        "tokenizer": dataclasses.replace(base, tokenizer=word_tokenizer(WORDS[::-1], 24)),
        "preprocessing": dataclasses.replace(
            base, preprocess=dataclasses.replace(base.preprocess, mean=(0.1, 0.1, 0.1))
        ),
    }
    for name, other in others.items():
        other.save(trained / name)
        with pytest.raises(WeightsError, match=f"differs from config.weights, weights, in {name};"):
            train.main(arguments("labeled", f"--config.init={name}"))


@pytest.mark.full
def test_pseudo_labels_stay_those_of_the_frozen_model(trained):
    base_model(seed=5).save(trained / "elsewhere")
    run("labeled", "--workdir=plain", NONE)
    found = run("labeled", "--workdir=second", NONE, "--config.init=elsewhere")
    inputs = [json.loads((trained / d / "inputs.json").read_text()) for d in ("plain", "second")]
    assert inputs[0]["pseudo_labels_sha256"] == inputs[1]["pseudo_labels_sha256"]
    assert found["weights_sha256"] == Checkpoint.load(trained / "weights").sha256


@pytest.mark.parametrize("broken", ["params", "prototypes"])
def test_a_step_that_is_not_finite_is_refused(trained, monkeypatch, broken):
    step = trained / "first/checkpoints/6"
    read = checkpoints.read

    def damaged(directory: Path, number: int) -> dict:
        tree = read(directory, number)
        if broken == "params":
            tree["params"]["text/projection"] = np.full_like(
                tree["params"]["text/projection"], np.nan
            )
        else:
            tree["method"] = {
                key: np.full_like(value, np.inf) for key, value in tree["method"].items()
            }
        return tree

    monkeypatch.chdir(trained)
    warm_start._read_step(step)
    monkeypatch.setattr(checkpoints, "read", damaged)
    where = "text/projection" if broken == "params" else "prototypes"
    with pytest.raises(WeightsError, match=f"expected finite numbers.* in {where};"):
        warm_start._read_step(step)
