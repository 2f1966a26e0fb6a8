"""The compiled step: what it leaves out changes nothing, and devices change nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from lattec_jax import sharding
from lattec_jax.augment import Augmentation
from lattec_jax.data.batches import Batches
from lattec_jax.methods.base import Method, Targets
from lattec_jax.methods.latteclip import LatteCLIP
from lattec_jax.micro_batches import Encoder
from lattec_jax.models.checkpoint import Checkpoint
from lattec_jax.models.clip import bind, define
from lattec_jax.models.config import text_lengths
from lattec_jax.state import TrainState, init_state, learning_rate_schedule, make_optimiser
from lattec_jax.step import (
    Batch,
    StepSettings,
    Tables,
    encode_images,
    gather_features,
    make_train_step,
    unique_classes,
)
from tests.dummy import WORDS, dummy_checkpoint

N, K, STEPS, CONTEXT = 96, 2, 3, 24


class World:
    """Random pictures and texts for a dummy CLIP."""

    def __init__(self, classes: int):
        rng = np.random.default_rng(5)
        self.checkpoint: Checkpoint = dummy_checkpoint(context_length=CONTEXT, layers=1)
        words = np.array(WORDS)
        tokenizer = self.checkpoint.tokenizer
        self.class_tokens = tokenizer(
            ["a photo of the " + " ".join(rng.choice(words, 3)) for _ in range(classes)]
        )
        longs = rng.integers(2, CONTEXT - 4, N * K)
        self.texts = tokenizer([" ".join(rng.choice(words, n)) for n in longs])
        self.lengths = text_lengths(self.texts, self.checkpoint.config.text)
        self.pixels = rng.integers(0, 256, (N, 20, 24, 3)).astype(np.uint8)
        self.sizes = np.stack([rng.integers(10, 21, N), rng.integers(10, 25, N)], 1)
        self.zero_shot = rng.integers(0, classes, N).astype(np.int32)
        self.present = rng.random((N, K)) > 0.1
        self.class_vectors = self.encode(self.class_tokens)

    def encode(self, tokens: np.ndarray) -> np.ndarray:
        """Features of texts at full length, each encoded by itself in batches of one shape."""
        encode = encode_text(define(self.checkpoint.config))
        filled = np.resize(tokens, (len(tokens) + -len(tokens) % 64, CONTEXT))
        parts = [encode(self.checkpoint.params, part) for part in filled.reshape(-1, 64, CONTEXT)]
        return np.concatenate(parts)[: len(tokens)]

    def tables(self, kinds: int, class_length: int) -> Tables:
        return Tables(
            class_tokens=jnp.asarray(self.class_tokens[:, :class_length]),
            description_tokens=jnp.asarray(
                self.texts.reshape(N, K, -1)[:, :kinds].reshape(-1, CONTEXT)
            ),
            present=jnp.asarray(self.present[:, :kinds]),
            targets=Targets(jnp.asarray(self.zero_shot)),
            pixels=jnp.asarray(self.pixels),
            sizes=jnp.asarray(self.sizes),
        )

    def batches(self, batch_size: int, kinds: int, multiple: int = 1) -> Batches:
        lengths = self.lengths.reshape(N, K)[:, :kinds]
        return Batches(N, batch_size, 0, STEPS, lengths, CONTEXT, multiple)


@cache
def encode_text(definition: nnx.GraphDef) -> Callable:
    """The text tower, compiled once."""
    return jax.jit(lambda params, tokens: bind(definition, params).encode_text(tokens))


def on_device(host) -> Batch:
    return Batch(
        images=jnp.asarray(host.images),
        text_rows=tuple(map(jnp.asarray, host.text_rows)),
        text_places=jnp.asarray(host.text_places),
        text_images=jnp.asarray(host.text_images),
        ends_epoch=jnp.asarray(host.ends_epoch),
    )


def train(
    world: World, method: Method, mesh: Mesh, batch_size: int
) -> tuple[TrainState, TrainState]:
    """States before and after `STEPS` steps at a learning rate of 1e-3."""
    from configs.common import get_config

    config = get_config().train
    config.learning_rate, config.warmup_steps, config.weight_decay = 1e-3, 2, 0.2
    config.schedule, config.optimizer = "cosine", "adamw"
    optimiser = make_optimiser(config, STEPS)
    preprocess = world.checkpoint.preprocess
    settings = StepSettings(
        preprocess.size,
        preprocess.mean,
        preprocess.std,
        Augmentation((0.5, 1.0), (0.75, 4 / 3), (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5),
    )
    definition = define(world.checkpoint.config, mesh=mesh)
    schedule = learning_rate_schedule(config, STEPS)
    step = make_train_step(definition, method, optimiser, schedule, settings, mesh)
    params = sharding.put(mesh, world.checkpoint.params)
    first = method.init(jnp.asarray(world.class_vectors), N)
    state = init_state(params, optimiser, first, mesh, seed=3)
    before = jax.device_get(state)
    kinds = len(method.description_kinds)
    tables = jax.device_put(world.tables(kinds, 16), sharding.replicated(mesh))
    for host in world.batches(batch_size, kinds, multiple=mesh.size).iterate(0, STEPS):
        batch = jax.device_put(on_device(host), sharding.replicated(mesh))
        state, figures = step(state, tables, batch, host.text_lengths)
        assert np.isfinite(float(figures["loss"]))
    return before, jax.device_get(state)


def distance(one, other) -> float:
    """Euclidean distance over all leaves."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs)))


@pytest.fixture(scope="module")
def single_run() -> tuple[TrainState, TrainState]:
    """States before and after a run on one device."""
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    return train(World(classes=7), LatteCLIP(0.9, 0.9), mesh, 32)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_one_and_eight_devices_give_the_same_run(single_run, fsdp, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)  # so that the dummy's matrices are split
    before, single = single_run
    mesh = sharding.make_mesh(fsdp, jax.devices())
    _, many = train(World(classes=7), LatteCLIP(0.9, 0.9), mesh, 32)
    for part in ("params", "method"):
        moved = distance(getattr(before, part), getattr(single, part))
        assert moved > 1e-3
        apart = distance(getattr(single, part), getattr(many, part))
        assert apart <= 1e-3 * moved, part  # measured: 1.2e-4


@pytest.mark.parametrize("classes", [5, 200])
def test_cropping_and_deduplication_change_nothing(classes):
    """Against one text per image and pseudo-label, all at full length; C below and above 2·B."""
    world, batch_size = World(classes), 16
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    method = LatteCLIP(0.7, 0.9)
    state = method.init(jnp.asarray(world.class_vectors), N)
    definition = define(world.checkpoint.config)
    images = np.random.default_rng(1).normal(size=(batch_size, 16, 16, 3)).astype(np.float32)
    host = world.batches(batch_size, K).at(2)
    assert len(host.text_lengths) > 1  # several groups, or the test shows nothing
    features, labels = jax.jit(
        lambda params: gather_features(
            Encoder(definition, params, mesh),
            method,
            state,
            bind(definition, params).encode_image(images),
            world.tables(K, 16),
            on_device(host),
            host.text_lengths,
        )
    )(world.checkpoint.params)

    np.testing.assert_array_equal(labels[0], world.zero_shot[host.images])
    for j in range(2):
        expected = world.encode(world.class_tokens[labels[j]])  # one text per image
        assert np.abs(features.class_texts[j] - expected).max() <= 1e-6
    texts = world.texts.reshape(N, K, -1)[host.images].reshape(batch_size * K, -1)
    expected = world.encode(texts).reshape(batch_size, K, -1)
    assert np.abs(features.descriptions - expected).max() <= 1e-6
    assert np.abs(expected[0, 0] - expected[1, 0]).max() > 1e-3
    np.testing.assert_array_equal(features.present, world.present[host.images])


def test_unique_classes_names_every_class_once():
    labels = jnp.array([[9, 3, 3, 120], [9, 77, 3, 0]])
    classes, places = unique_classes(labels, classes=150)
    np.testing.assert_array_equal(classes[places], labels)
    assert classes.shape == (8,)
    few, places = unique_classes(labels % 4, classes=4)
    np.testing.assert_array_equal(few, np.arange(4))
    np.testing.assert_array_equal(places, labels % 4)


def test_streamed_pictures_give_the_same_step():
    world = World(classes=5)
    settings = StepSettings(
        (16, 16), (0.5,) * 3, (0.2,) * 3, Augmentation((0.9, 1), (1, 1), (0,) * 4, 0, 0, 0)
    )
    mesh = sharding.make_mesh()
    definition = define(world.checkpoint.config, mesh=mesh)
    encoder = Encoder(definition, world.checkpoint.params, mesh)
    host = world.batches(8, K).at(0)
    streamed = on_device(host)._replace(
        pixels=jnp.asarray(world.pixels[host.images]), sizes=jnp.asarray(world.sizes[host.images])
    )
    tables = world.tables(K, 16)
    empty = tables._replace(pixels=None, sizes=None)
    found = [
        jax.jit(lambda b, t=t: encode_images(encoder, jax.random.key(0), t, b, settings))(batch)
        for t, batch in ((tables, on_device(host)), (empty, streamed))
    ]
    np.testing.assert_array_equal(*found)
