"""The compiled step: what it leaves out changes nothing, and devices change nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.methods.base import Method, Targets
from lattec_jax.methods.flyp import FLYP
from lattec_jax.methods.latteclip import LatteCLIP
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import Params, bind, define
from lattec_jax.runtime import sharding
from lattec_jax.training.augmentation import Augmentation
from lattec_jax.training.batches import Batches
from lattec_jax.training.microbatches import StepEncoder
from lattec_jax.training.state import TrainState, init_state, learning_rate_schedule, make_optimizer
from lattec_jax.training.step import (
    Batch,
    DeviceData,
    StepSettings,
    compute_features_and_labels,
    encode_images,
    make_train_step,
    unique_classes,
)
from tests.dummy import WORDS, dummy_checkpoint

N, K = 96, 2
ALL = Augmentation((0.5, 1.0), (0.75, 4 / 3), (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5)


class World:
    """Random images, texts and prototypes for a dummy CLIP."""

    def __init__(self, classes: int, layers: int = 1, context_length: int = 24):
        rng = np.random.default_rng(5)
        self.checkpoint: Checkpoint = dummy_checkpoint(context_length=context_length, layers=layers)
        words = np.array(WORDS)
        tokenizer = self.checkpoint.tokenizer
        self.class_tokens = tokenizer(
            ["a photo of the " + " ".join(rng.choice(words, 3)) for _ in range(classes)]
        )
        longs = rng.integers(2, context_length - 4, N * K)
        self.texts = tokenizer([" ".join(rng.choice(words, n)) for n in longs])
        self.lengths = text_lengths(self.texts, self.checkpoint.config.text)
        self.pixels = rng.integers(0, 256, (N, 20, 24, 3)).astype(np.uint8)
        self.sizes = np.stack([rng.integers(10, 21, N), rng.integers(10, 25, N)], 1)
        self.zero_shot = rng.integers(0, classes, N).astype(np.int32)
        self.present = rng.random((N, K)) > 0.1
        self.class_weights = unit(rng, classes)

    def device_data(self, kinds: int, whole: bool = True) -> DeviceData:
        """With class tokens as short as they may be and images of all sizes, or neither."""
        width = self.texts.shape[1]
        return DeviceData(
            class_tokens=jnp.asarray(self.class_tokens[:, : 16 if whole else width]),
            description_tokens=jnp.asarray(
                self.texts.reshape(N, K, width)[:, :kinds].reshape(N * kinds, width)
            ),
            present=jnp.asarray(self.present[:, :kinds]),
            targets=Targets(jnp.asarray(self.zero_shot)),
            pixels=jnp.asarray(self.pixels if whole else self.pixels[:, :16, :16]),
            sizes=jnp.asarray(self.sizes) if whole else None,
        )

    def batches(
        self, batch_size: int, kinds: int, steps: int, multiple: int = 1, bucketed: bool = True
    ) -> Batches:
        """Batches of images with texts in buckets by length, or all at full length."""
        width = self.texts.shape[1]
        lengths = self.lengths.reshape(N, K)[:, :kinds]
        if not bucketed:
            lengths = np.full_like(lengths, width)
        return Batches(N, batch_size, 0, steps, lengths, width, multiple)


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random unit vectors."""
    found = rng.normal(size=(count, 16)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def on_device(host) -> Batch:
    return Batch(
        images=jnp.asarray(host.images),
        text_indices=tuple(map(jnp.asarray, host.text_indices)),
        text_positions=jnp.asarray(host.text_positions),
        text_images=jnp.asarray(host.text_images),
        ends_epoch=jnp.asarray(host.ends_epoch),
        is_logged=jnp.asarray(True),
    )


def train(
    world: World, method: Method, mesh: Mesh, batch_size: int, steps: int, whole: bool = False
) -> tuple[TrainState, TrainState]:
    """States before and after some steps at a learning rate of 1e-3.

    Args:
        world: what is trained and with what.
        method: the method.
        mesh: the devices.
        batch_size: of each step.
        steps: how many.
        whole: augment the images, and encode the texts in buckets by length.
    """
    from configs.common import get_config

    config = get_config().train
    config.learning_rate, config.warmup_steps, config.weight_decay = 1e-3, 2, 0.2
    config.schedule, config.optimizer = "cosine", "adamw"
    schedule = learning_rate_schedule(config, steps)
    optimizer = make_optimizer(config, schedule)
    preprocess = world.checkpoint.preprocess
    settings = StepSettings(
        preprocess.size, preprocess.mean, preprocess.std, ALL if whole else None
    )
    definition = define(world.checkpoint.config, mesh=mesh)
    step = make_train_step(definition, method, optimizer, schedule, settings, mesh)
    params = sharding.shard_params(world.checkpoint.params, mesh)
    first = method.init(jnp.asarray(world.class_weights), N)
    state = init_state(params, optimizer, first, mesh, seed=3)
    before = jax.device_get(state)
    kinds = len(method.description_kinds)
    device_data = jax.device_put(world.device_data(kinds, whole), sharding.replicated(mesh))
    for host in map(world.batches(batch_size, kinds, steps, mesh.size, whole).at, range(steps)):
        batch = jax.device_put(on_device(host), sharding.replicated(mesh))
        state, metrics = step(state, device_data, batch, host.bucket_lengths)
        assert np.isfinite(float(metrics["loss"]))
    return before, jax.device_get(state)


def distance(one, other) -> float:
    """Euclidean distance over all leaves."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs)))


@cache
def run(whole: bool, devices: int = 1, fsdp: int = 1) -> tuple[TrainState, TrainState]:
    """States before and after three steps of one layer, or a whole run of two."""
    mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
    world = World(7, 2, 40) if whole else World(7)
    return train(world, LatteCLIP(0.9, 0.9), mesh, 32, 20 if whole else 3, whole)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.full)])
# 4: the batch and the parameters are split; 1: the batch alone.
@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.full), 4])
def test_one_and_eight_devices_give_the_same_run(fsdp, whole, monkeypatch):
    before, single = run(whole)
    monkeypatch.setattr(sharding, "MIN_SHARDED_SIZE", 64)  # so that the dummy's matrices are split
    _, many = run(whole, 8, fsdp)
    # Relative to the distance moved, ten times what was measured: 1.2e-4 and 1.2e-6.
    for part, tolerance in (("params", 1e-3), ("method", 1e-5)):
        moved = distance(getattr(before, part), getattr(single, part))
        assert moved > 1e-3
        assert distance(getattr(single, part), getattr(many, part)) <= tolerance * moved, part


@cache
def encoder_of(definition: nnx.GraphDef) -> Callable[[Params, np.ndarray], jax.Array]:
    """The compiled text tower."""
    return jax.jit(lambda params, tokens: bind(definition, params).encode_text(tokens))


@pytest.mark.parametrize("classes", [5, 200])
def test_cropping_and_deduplication_change_nothing(classes):
    """Against one text per image and pseudo-label, all at full length; C below and above 2·B."""
    world, batch_size = World(classes), 16
    mesh = sharding.make_mesh()
    method = LatteCLIP(0.7, 0.9)
    state = method.init(jnp.asarray(world.class_weights), N)
    definition = define(world.checkpoint.config)
    images = unit(np.random.default_rng(1), batch_size)
    host = world.batches(batch_size, K, 3).at(2)
    assert len(host.bucket_lengths) > 1  # several buckets, or the test shows nothing
    features, labels = jax.jit(
        lambda params: compute_features_and_labels(
            StepEncoder(definition, params, mesh),
            method,
            state,
            jnp.asarray(images),
            world.device_data(K),
            on_device(host),
            host.bucket_lengths,
        )
    )(world.checkpoint.params)

    np.testing.assert_array_equal(labels[0], world.zero_shot[host.images])
    np.testing.assert_array_equal(labels[1], np.argmax(images @ world.class_weights.T, axis=1))
    texts = world.texts.reshape(N, K, -1)[host.images].reshape(batch_size * K, -1)
    tokens = np.concatenate([*world.class_tokens[np.asarray(labels)], texts])
    expected = np.asarray(encoder_of(definition)(world.checkpoint.params, tokens))
    of_classes, of_texts = np.split(expected.reshape(4, batch_size, -1), 2)
    assert np.abs(features.class_texts - of_classes).max() <= 1e-6  # one text per image
    of_texts = of_texts.reshape(batch_size, K, -1)
    assert np.abs(features.descriptions - of_texts).max() <= 1e-6
    assert np.abs(of_texts[0, 0] - of_texts[1, 0]).max() > 1e-3
    np.testing.assert_array_equal(features.present, world.present[host.images])


def test_unique_classes_names_every_class_once():
    labels = np.array([[9, 3, 3, 120], [9, 77, 3, 0]])
    unique = jax.jit(unique_classes, static_argnums=1)
    classes, places = unique(labels, 150)
    np.testing.assert_array_equal(classes[places], labels)
    assert classes.shape == (8,)
    few, places = unique(labels % 4, 4)
    np.testing.assert_array_equal(few, np.arange(4))
    np.testing.assert_array_equal(places, labels % 4)


def test_flyp_trains_both_towers_and_has_no_prototypes():
    before, after = train(World(5), FLYP(), sharding.make_mesh(), 16, 3)
    assert after.method == ()
    still = [n for n, v in after.params.items() if np.array_equal(v, before.params[n])]
    # The end token's embedding moves, most rows of the table do not, but the array does.
    assert not still, still


def test_streamed_images_give_the_same_step():
    world = World(5)
    settings = StepSettings(
        (16, 16), (0.5,) * 3, (0.2,) * 3, Augmentation((0.9, 1.0), (1.0, 1.0), (0,) * 4, 0, 0, 0)
    )
    mesh = sharding.make_mesh()
    definition = define(world.checkpoint.config, mesh=mesh)
    encoder = StepEncoder(definition, world.checkpoint.params, mesh)
    host = world.batches(8, K, 1).at(0)
    streamed = on_device(host)._replace(
        pixels=jnp.asarray(world.pixels[host.images]), sizes=jnp.asarray(world.sizes[host.images])
    )
    device_data = world.device_data(K)
    empty = device_data._replace(pixels=None, sizes=None)
    found = [
        jax.jit(lambda b, t=t: encode_images(encoder, jax.random.key(0), t, b, settings))(batch)
        for t, batch in ((device_data, on_device(host)), (empty, streamed))
    ]
    np.testing.assert_array_equal(*found)


def test_the_norm_of_the_update_is_computed_for_logged_steps_only():
    """And whether it is changes no parameter."""
    world, method = World(3), FLYP()
    mesh = sharding.make_mesh()
    optimizer = optax.adamw(lambda count: 1e-3 * jnp.ones_like(count, jnp.float32))
    preprocess = world.checkpoint.preprocess
    settings = StepSettings(preprocess.size, preprocess.mean, preprocess.std, None)
    step = make_train_step(
        define(world.checkpoint.config, mesh=mesh),
        method,
        optimizer,
        lambda _: 1e-3,
        settings,
        mesh,
    )
    device_data = jax.device_put(world.device_data(0, False), sharding.replicated(mesh))
    host = world.batches(16, 0, 1, mesh.size).at(0)
    found = []
    for is_logged in (True, False):
        params = sharding.shard_params(world.checkpoint.params, mesh)
        state = init_state(params, optimizer, (), mesh)
        batch = on_device(host)._replace(is_logged=jnp.asarray(is_logged))
        batch = jax.device_put(batch, sharding.replicated(mesh))
        found.append(jax.device_get(step(state, device_data, batch, host.bucket_lengths)))
    (logged, metrics), (other, other_metrics) = found
    change = {k: after - world.checkpoint.params[k] for k, after in logged.params.items()}
    size = np.sqrt(sum(np.square(x.astype(np.float64)).sum() for x in change.values()))
    assert metrics["update_norm"] == pytest.approx(size, rel=1e-3)
    assert other_metrics["update_norm"] == 0
    for name, value in logged.params.items():
        np.testing.assert_array_equal(other.params[name], value)
