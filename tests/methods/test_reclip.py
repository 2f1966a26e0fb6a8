"""ReCLIP beside its gradients: what moves, what an epoch begins with, and the settings."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import get_config
from lattec_jax.methods import make_method
from lattec_jax.methods.base import TrainingSetFeatures
from lattec_jax.methods.reclip import Copies, ReCLIP
from lattec_jax.models.clip import define
from lattec_jax.runtime import sharding
from lattec_jax.runtime.config import parse
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.train_run import total_steps
from lattec_jax.training.state import init_state, learning_rate_schedule, make_optimizer
from lattec_jax.training.step import StepSettings, make_train_step
from tests.methods.reference import unit
from tests.methods.test_label_propagation import clusters, dense_graph
from tests.training.test_step import N, World, on_device


def configuration(*overrides: str):
    return parse(["train", "--config=configs/folder.py:method=reclip", *overrides])


@functools.cache
def compiled():
    """What all runs share: images, method, mesh, optimizer and step, warmed up for 5 steps."""
    world, method, mesh = World(classes=5), ReCLIP(), sharding.make_mesh()
    config = get_config("method=reclip").train
    config.warmup_steps = 5
    schedule = learning_rate_schedule(config, 10)
    optimizer = make_optimizer(config, schedule)
    preprocess = world.checkpoint.preprocess
    settings = StepSettings(preprocess.size, preprocess.mean, preprocess.std, None)
    step = make_train_step(
        define(world.checkpoint.config, mesh=mesh), method, optimizer, schedule, settings, mesh
    )
    return world, method, mesh, optimizer, step


def steps(labels: np.ndarray, count: int):
    """States before and after `count` steps of 16 images with these labels of T and V, and the
    learning rates that are logged."""
    world, method, mesh, optimizer, step = compiled()
    first = method.init(jnp.asarray(world.class_weights), N)._replace(labels=jnp.asarray(labels))
    params = sharding.shard_params(world.checkpoint.params, mesh)
    state = init_state(params, optimizer, first, mesh, method.trainable)
    frozen = unit(np.random.default_rng(0).normal(size=(N, 16))).astype(np.float32)
    device_data = world.device_data(0, 16)._replace(
        pixels=jnp.asarray(world.pixels[:, :16, :16]),
        sizes=None,
        pretrained_features=jnp.asarray(frozen),
    )
    states, rates = [jax.device_get(state)], []
    for host in map(world.batches(16, 0, count, multiple=mesh.size).at, range(count)):
        arguments = jax.device_put((device_data, on_device(host)), sharding.replicated(mesh))
        state, metrics = step(state, *arguments, ())
        assert np.isfinite(float(metrics["loss"]))
        states.append(jax.device_get(state))
        rates.append(float(metrics["learning_rate"]))
    return states, rates


def test_only_layer_norms_move_and_all_of_them():
    labels = np.random.default_rng(1).integers(0, 5, (2, N)).astype(np.int32)
    (before, *_, after), _ = steps(labels, 3)
    moved = {n for n, v in after.params.items() if not np.array_equal(v, before.params[n])}
    assert moved == {n for n in after.params if "/ln_" in n}
    assert {n.partition("/")[0] for n in moved} == {"visual", "text"}
    arrays = [x for x in jax.tree.leaves(after.optimizer) if x.ndim]
    assert len(arrays) == len(moved)  # one momentum each, none for anything else


def test_a_batch_without_agreement_moves_nothing_and_leaves_the_momentum():
    labels = np.stack([np.zeros(N), np.zeros(N)]).astype(np.int32)
    once = steps(labels, 1)[0][1]
    labels[1] = 1
    (before, after), _ = steps(labels, 1)
    for part in ("params", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(after, part))
    assert (int(before.step), int(after.step)) == (0, 1)
    name = "visual/ln_post/bias"
    assert not np.array_equal(once.params[name], before.params[name])


def test_the_logged_learning_rate_is_that_of_the_optimizer():
    """Which counts only the steps that moved something."""
    agree = np.zeros((2, N), np.int32)
    np.testing.assert_allclose(steps(agree, 2)[1], [2e-4, 4e-4], rtol=1e-6)
    differ = np.stack([np.zeros(N), np.ones(N)]).astype(np.int32)
    np.testing.assert_allclose(steps(differ, 2)[1], [2e-4, 2e-4], rtol=1e-6)


def test_an_epoch_begins_with_both_graphs_and_new_centroids():
    """Against the dense formulas: T over frozen features and current texts, V the other way."""
    texts, frozen, _ = clusters(600, 6, 32, 0.35)
    current_texts = unit(texts + 0.1 * np.random.default_rng(3).normal(size=texts.shape))
    current = unit(frozen + 0.1 * np.random.default_rng(4).normal(size=frozen.shape))
    current_texts, current = current_texts.astype(np.float32), current.astype(np.float32)
    method = ReCLIP(neighbors=9, diffusion=0.9, iterations=50)
    state = Copies(jnp.asarray(texts), jnp.asarray(texts[::-1]), jnp.zeros((2, 600), jnp.int32))
    features = TrainingSetFeatures(
        images=lambda: current, classes=lambda: current_texts, pretrained_features=frozen
    )
    found = method.begin_epoch(state, features)
    for copy, (seeds, images) in enumerate([(current_texts, frozen), (texts, current)]):
        nodes = np.concatenate([seeds, images])
        matrix = np.eye(606) - 0.9 * dense_graph(nodes, seeds, 768, 9)
        labels = np.linalg.solve(matrix, np.eye(606, 6)).argmax(axis=1)
        assert np.mean(found.labels[copy] == labels[6:]) >= 0.998
        if copy == 1:
            labels[6:] = found.labels[1]
            means = [nodes[labels == c].astype(np.float64).mean(axis=0) for c in range(6)]
            np.testing.assert_allclose(found.class_weights, unit(np.array(means)), atol=2e-7)
    assert np.any(found.labels[0] != found.labels[1])
    np.testing.assert_array_equal(found.texts, texts)
    for new, old in zip(found, state, strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_the_repository_s_settings_are_its_own_and_explicit_values_win():
    config, _ = configuration()
    assert make_method(config.method) == ReCLIP()
    train = config.train
    assert (train.batch_size, train.learning_rate, train.weight_decay) == (64, 1e-3, 1e-4)
    assert (train.optimizer, train.schedule, train.warmup_steps) == ("sgd", "constant", 0)
    assert train.momentum == 0.9
    explicit, _ = configuration("--config.train.batch_size=32", "--config.train.optimizer=adamw")
    assert (explicit.train.batch_size, explicit.train.optimizer) == (32, "adamw")
    demo, _ = parse(["train", "--config=configs/demo.py:method=reclip"])
    assert demo.train.to_dict() == train.to_dict()
    latteclip, _ = parse(["train", "--config=configs/demo.py"])
    assert (latteclip.train.batch_size, latteclip.train.max_steps) == (128, 60)


@pytest.mark.parametrize(
    ("images", "override", "expected"),
    [(1000, "", 2), (18_900, "", 5), (1_000_000, "", 100), (1000, "0", 100), (1000, "10", 100)],
)
def test_epochs_follow_the_number_of_images(images, override, expected):
    overrides = [f"--config.method.reclip.images_per_epoch={override}"] if override else []
    config, _ = configuration(*overrides)
    assert total_steps(config, make_method(config.method), images, images // 7) == 7 * expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("neighbors=0", "neighbors: .* from 1 to 10000, found 0"),
        ("diffusion=1.0", "diffusion: .* at least 0 and below 1, found 1"),
        ("cut_dim=1", "cut_dim: .* from 2 to 65536, found 1"),
    ],
)
def test_settings_outside_their_bounds_are_refused(override, message):
    with pytest.raises(ConfigError, match=rf"config\.method\.reclip\.{message}"):
        configuration(f"--config.method.reclip.{override}")
