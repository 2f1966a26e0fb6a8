"""Whole runs of what the train loop does for some methods only: ReCLIP, WiSE-FT, ablations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattec_jax import evaluate, predict, train
from lattec_jax.methods import METHODS
from lattec_jax.methods.base import Method
from lattec_jax.runtime.errors import ConfigError, WeightsError
from lattec_jax.training.metrics_log import RunLog
from tests.runs import arguments, assert_equal, base_model, classifier_of, logged, model_of, run

RECLIP = (":method=reclip", "--config.method.reclip.images_per_epoch=0")
AS_RECLIP = ("labeled", *RECLIP, "--config.eval_every=3", "--config.checkpoint_every=3")


@pytest.fixture(scope="module")
def finished_reclip(finished, tmp_path_factory) -> Path:
    """As `finished`, with ReCLIP's run `reclip`, whose checkpoints do not end an epoch."""
    directory = shutil.copytree(finished, tmp_path_factory.mktemp("reclip"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        run(*AS_RECLIP, "--workdir=reclip")
    return directory


@pytest.fixture
def reclip(finished_reclip, tmp_path) -> Path:
    """The working directory, a copy of `finished_reclip`."""
    return shutil.copytree(finished_reclip, tmp_path, dirs_exist_ok=True)


@pytest.mark.full
def test_reclip_from_images_to_predictions(reclip, capsys):
    directory = reclip / "reclip"
    found = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    assert (found["method"], found["steps"], found["reclip"]["neighbors"]) == ("reclip", 6, 20)
    assert found["alpha"] is None and found["descriptions"] is None
    assert {"classifier", "frozen_class_weights"} == set(classifier_of(directory))
    lines = logged(directory)
    assert {"loss_t", "loss_v", "label_agreement"} <= lines[0].keys()
    assert lines[-1]["test_top1"] == found["adapted"]["top1"]
    base, adapted = base_model().params, model_of(directory)
    assert {n for n in base if not np.array_equal(base[n], adapted[n])} == {
        n for n in base if "/ln_" in n
    }

    capsys.readouterr()
    evaluate.main(["evaluate", f"--workdir={directory}"])
    assert capsys.readouterr().out.strip() == found["table"]
    predict.main(["predict", f"--workdir={directory}", "--format=jsonl", "labeled/test"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = np.mean([Path(line["image"]).parent.name == line["class"] for line in lines])
    assert right == pytest.approx(found["adapted"]["top1"])

    command = ["predict", f"--workdir={directory}", "labeled/test"]
    shutil.move(reclip / "weights", reclip / "elsewhere")
    with pytest.raises(WeightsError, match=r"pre-trained model of the run in .* is needed here"):
        predict.main(command)
    base_model(seed=1).save(reclip / "weights")
    with pytest.raises(WeightsError, match=r"expected weights with the SHA-256 \w+, found \w+"):
        predict.main(command)


@pytest.mark.full
def test_reclip_killed_inside_of_an_epoch_continues_as_if_nothing_had_been(reclip, monkeypatch):
    """Two steps an epoch and a checkpoint after three: the labels of step 4 come from it."""
    written = RunLog.write

    def interrupt(self, step, metrics):
        written(self, step, metrics)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(*AS_RECLIP, "--workdir=broken")
    monkeypatch.setattr(RunLog, "write", written)
    assert (reclip / "broken/checkpoints/3").exists()
    run(*AS_RECLIP, "--workdir=broken")
    assert_equal(reclip / "reclip", reclip / "broken")


@pytest.mark.full
def test_reclip_with_a_streamed_image_cache_and_microbatches_is_the_same(reclip):
    whole = json.loads((reclip / "reclip/results.json").read_text(encoding="utf-8"))
    streamed = ("--config.image_cache.placement=host", "--config.train.microbatch_size=8")
    num_microbatches = run("labeled", "--workdir=microbatches", *RECLIP, *streamed)
    assert whole["adapted"] == num_microbatches["adapted"]
    one, other = model_of(reclip / "reclip"), model_of(reclip / "microbatches")
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], atol=1e-5, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "fractions"), [("latteclip", (0, 1, 0.5)), ("reclip", (0, 0.5))]
)
def test_wise_ft_averages_the_model_before_and_after(reclip, method, fractions):
    chosen, plain_dir = (
        (RECLIP, reclip / "reclip") if method == "reclip" else ((), reclip / "first")
    )
    plain = json.loads((plain_dir / "results.json").read_text(encoding="utf-8"))
    assert plain["wise_ft"] is None
    for fraction in fractions:
        found = run("labeled", f"--workdir=a{fraction}", f"--config.wise_ft={fraction}", *chosen)
        assert found["wise_ft"] == fraction
    base, adapted = base_model().params, model_of(plain_dir)
    assert any(not np.array_equal(base[name], adapted[name]) for name in base)

    none = json.loads((reclip / "a0/results.json").read_text(encoding="utf-8"))
    assert none["adapted"] == none["zero_shot"] == plain["zero_shot"]
    assert none["per_class"]["adapted"] == none["per_class"]["zero_shot"]
    assert "hardly changed" not in none["health"]["verdict"]  # the fraction 0 trains nothing
    for name, value in model_of(reclip / "a0").items():
        np.testing.assert_array_equal(value, base[name])
    if 1 in fractions:
        for file in ("model/model.safetensors", "classifier.safetensors"):
            assert (reclip / "a1" / file).read_bytes() == (plain_dir / file).read_bytes()
    for name, value in model_of(reclip / "a0.5").items():
        middle = (base[name].astype(np.float64) + adapted[name]) / 2
        np.testing.assert_allclose(value, middle, atol=1e-7)
    # The method's own vectors: averaged, and of length 1 again.
    before, after, half = (
        classifier_of(directory)["classifier"].astype(np.float64)
        for directory in (reclip / "a0", plain_dir, reclip / "a0.5")
    )
    mean = (before + after) / 2
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(half, mean, atol=1e-6)


def test_a_share_that_is_none_is_refused():
    for fraction in ("1.5", "-0.1"):
        with pytest.raises(
            ConfigError,
            match=rf"config\.wise_ft: .* from 0 to 1, found {fraction}",
        ):
            train.main(arguments("labeled", f"--config.wise_ft={fraction}"))


@pytest.mark.full
@pytest.mark.parametrize(
    "ablations",
    [
        (":preset=paper", "--config.method.mixer=False", "--config.method.labels=('zero_shot',)"),
        (
            ":preset=released_code",
            "--config.method.labels=('current',)",
            "--config.method.texts=('image','group')",
            "--config.method.momentum=0.0",
            "--config.method.alpha=0.0",
        ),
    ],
)
def test_the_ablations_of_table_3_run_from_the_command_line(trained, ablations):
    found = run("labeled", *ablations)
    assert found["steps"] == 6
    directory = trained / "runs/labeled-latteclip-s0"
    vectors = classifier_of(directory)["classifier"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    kept = "loss_zero_shot" if "paper" in ablations[0] else "loss_current"
    assert [name for name in logged(directory)[0] if name.startswith("loss_")] == [kept]


class Entropy(Method):
    """The least that a method of one's own says: sure predictions by the class texts."""

    name = "entropy"
    encodes_all_classes = True

    def labels(self, images, classifier, targets, state):
        return jnp.argmax(images @ classifier.T, axis=1)[None]

    def loss(self, features, labels, state):
        log_odds = jax.nn.log_softmax(features.logit_scale * features.images @ features.classes.T)
        return -jnp.mean(jnp.sum(jnp.exp(log_odds) * log_odds, axis=1)), None


@pytest.mark.full
def test_a_method_of_two_functions_is_a_whole_run(trained, monkeypatch):
    monkeypatch.setitem(METHODS, "entropy", lambda config: Entropy())
    found = run("labeled", ":method=entropy", "--config.train.batch_size=32")
    losses = [line["loss"] for line in logged(trained / "runs/labeled-entropy-s0")]
    assert losses[-1] < losses[0] and found["method"] == "entropy"
