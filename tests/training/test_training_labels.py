"""Labels of the training images change nothing of what an unsupervised method trains on.

A step is a function of its state, the tables and the batch; an epoch begins with the training set's
features. So it is enough that all of these are equal whatever the labels are. `test_train.py` has
whole runs of LatteCLIP with and without labels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lattec_jax import check_data
from lattec_jax.methods import METHODS, make_method
from lattec_jax.runtime import sharding
from lattec_jax.runtime.config import parse
from lattec_jax.train import describe
from lattec_jax.training import input_pipeline, prepare
from tests.dummy import dummy_checkpoint
from tests.runs import CLASSES, arguments, make_images

UNSUPERVISED = [name for name in METHODS if name != "flyp_oracle"]
LABELS = ("absent", "true", "permuted")


class Prepared(NamedTuple):
    """A configuration with the inputs that the stages before training made of it."""

    config: ConfigDict
    inputs: prepare.Inputs


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, jax.devices()[:1])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, mesh) -> dict[str, Prepared]:
    """The same images with the labels of `LABELS`, each with artifacts of its own."""
    folder = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_images(folder / "unlabeled", 6, labeled=False)
        dummy_checkpoint().save(folder / "weights")
        train = sorted((folder / "unlabeled" / "train").iterdir())
        test = sorted((folder / "unlabeled" / "test").iterdir())
        true = {path: next(c for c in CLASSES if c[0] == path.name[0]) for path in train + test}
        permuted = true | dict(zip(train, [true[p] for p in train[5:] + train[:5]], strict=True))
        found = {}
        for name, labels in zip(LABELS, ({}, true, permuted), strict=True):
            chosen = "none"
            if labels:
                chosen = f"{name}.csv"
                rows = (
                    f"{path.relative_to(folder / 'unlabeled').as_posix()},{label}\n"
                    for path, label in labels.items()
                )
                (folder / chosen).write_text("image,label\n" + "".join(rows), encoding="utf-8")
            own = (f"--config.artifacts={name}", f"--config.dataset.labels={chosen}")
            config, _ = parse(arguments("unlabeled", *own))
            dataset = check_data.check(config)
            method = make_method(config.method)
            found[name] = Prepared(
                config, prepare.prepare_inputs(config, dataset, "", method, mesh, describe)
            )
    return found


def trained_on(prepared: Prepared, mesh, *overrides: str) -> list[np.ndarray]:
    """All arrays that a method's steps and epochs begin with."""
    name = prepared.config.dataset.labels
    own = (f"--config.artifacts={prepared.config.artifacts}", f"--config.dataset.labels={name}")
    config, _ = parse(arguments("unlabeled", *own, *overrides))
    inputs, method = prepared.inputs, make_method(config.method)
    batches, texts, present = input_pipeline.make_batches(config, inputs, method, 16, 4, mesh)
    params = sharding.shard_params(inputs.weights.params, mesh)
    pixels = inputs.train.eval_cache.pixels  # of which an epoch may ask features
    features = None
    if "pretrained_features" in method.requires:
        features = inputs.extractor.encode_images(params, pixels)
    device_data = input_pipeline.make_device_data(
        config, inputs, method, texts, present, features, mesh
    )
    stream = input_pipeline.device_batches(
        batches, inputs.train.train_cache, device_data, 0, 4, mesh
    )
    classes = inputs.extractor.encode_classes(params, inputs.prompts)
    leaves = jax.tree.leaves((device_data, [batch for _, batch in stream], classes, pixels))
    return [np.asarray(leaf) for leaf in leaves]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    pairs = zip(one, other, strict=True)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in pairs)


def test_the_labels_are_there_and_differ(prepared):
    absent, true, permuted = (prepared[name].inputs.train.labels for name in LABELS)
    assert absent is None
    assert 0 < np.mean(true == permuted) < 1


@pytest.mark.parametrize("preset", ["paper", "released_code"])
@pytest.mark.parametrize("name", UNSUPERVISED)
def test_labels_change_nothing(prepared, mesh, name, preset):
    overrides = (
        f":method={name}",
        f":preset={preset}",
        "--config.train.batch_size=16",
    )
    absent, true, permuted = (trained_on(prepared[labels], mesh, *overrides) for labels in LABELS)
    assert len(absent) > 10
    assert same(absent, true) and same(absent, permuted)


def test_the_comparison_notices_labels_that_are_used(prepared, mesh):
    oracle = ":method=flyp_oracle"
    true, permuted = (trained_on(prepared[labels], mesh, oracle) for labels in LABELS[1:])
    assert len(true) == len(permuted) and not same(true, permuted)
