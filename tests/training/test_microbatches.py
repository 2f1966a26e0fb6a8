"""Pieces of a batch give the gradients of the whole batch, and keep less in memory."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattec_jax.data.text.bucketing import text_lengths
from lattec_jax.methods.base import Method, Targets
from lattec_jax.methods.flyp import FLYP
from lattec_jax.methods.latteclip import LatteCLIP
from lattec_jax.models.clip import define
from lattec_jax.runtime import sharding
from lattec_jax.training.augmentation import Augmentation
from lattec_jax.training.batches import Batches
from lattec_jax.training.microbatches import StepEncoder
from lattec_jax.training.step import (
    Batch,
    DeviceData,
    StepSettings,
    compute_features_and_labels,
    encode_images,
)
from tests.dummy import WORDS, dummy_checkpoint

BATCH, CLASSES, KINDS, CONTEXT = 256, 37, 2, 24
LATTECLIP = LatteCLIP(0.5, 0.9)


class World:
    """One batch of random images and texts, whose lengths make buckets that do not divide."""

    def __init__(self, streamed: bool = False) -> None:
        rng = np.random.default_rng(12)
        self.checkpoint = dummy_checkpoint(context_length=CONTEXT, layers=1)
        tokenizer, words = self.checkpoint.tokenizer, np.array(WORDS)
        names = [" ".join(rng.choice(words, 3)) for _ in range(CLASSES)]
        class_tokens = tokenizer([f"a photo of the {name}" for name in names])[:, :16]
        spread = rng.integers(2, CONTEXT - 4, BATCH * KINDS)
        tokens = tokenizer([" ".join(rng.choice(words, n)) for n in spread])
        lengths = text_lengths(tokens, self.checkpoint.config.text)
        host = Batches(BATCH, BATCH, 0, 1, lengths.reshape(BATCH, KINDS), CONTEXT).at(0)
        assert any(len(rows) % 8 for rows in host.text_indices)  # or nothing is filled up
        pixels = jnp.asarray(rng.integers(0, 256, (BATCH, 20, 24, 3)).astype(np.uint8))
        sizes = jnp.asarray(
            np.stack([rng.integers(10, 21, BATCH), rng.integers(10, 25, BATCH)], axis=1)
        )
        labels = jnp.asarray(rng.integers(0, CLASSES, BATCH).astype(np.int32))
        self.bucket_lengths = host.bucket_lengths
        self.device_data = DeviceData(
            class_tokens=jnp.asarray(class_tokens),
            description_tokens=jnp.asarray(tokens),
            present=jnp.asarray(rng.random((BATCH, KINDS)) > 0.1),
            targets=Targets(labels),
            pixels=None if streamed else pixels,
            sizes=None if streamed else sizes,
        )
        self.batch = Batch(
            images=jnp.asarray(host.images),
            text_indices=tuple(map(jnp.asarray, host.text_indices)),
            text_positions=jnp.asarray(host.text_positions),
            text_images=jnp.asarray(host.text_images),
            ends_epoch=jnp.asarray(False),
            is_logged=jnp.asarray(True),
            pixels=pixels[host.images] if streamed else None,
            sizes=sizes[host.images] if streamed else None,
        )
        prototypes = rng.normal(size=(CLASSES, self.checkpoint.config.embed_dim))
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
        self.prototypes = jnp.asarray(prototypes.astype(np.float32))

    def gradient_function(self, method: Method, micro: int, devices: int, remat: bool):
        """Loss and gradient of `micro` images at a time, compiled, and its arguments."""
        mesh = sharding.make_mesh(1, jax.devices()[:devices])
        definition = define(self.checkpoint.config, remat=remat, mesh=mesh)
        preprocess = self.checkpoint.preprocess
        augmentation = Augmentation((0.5, 1.0), (0.75, 4 / 3), (0.0,) * 4, 0.0, 0.2, 0.5)
        settings = StepSettings(
            preprocess.size, preprocess.mean, preprocess.std, augmentation, BATCH // micro
        )
        state = method.init(self.prototypes, BATCH)
        batch = self.batch
        if not method.description_kinds:
            batch = batch._replace(text_indices=(), text_images=jnp.zeros((BATCH, 0), jnp.int32))

        def loss(params, device_data, batch):
            encoder = StepEncoder(definition, params, mesh, settings.num_microbatches)
            images = encode_images(encoder, jax.random.key(1), device_data, batch, settings)
            lengths = self.bucket_lengths if method.description_kinds else ()
            features, labels = compute_features_and_labels(
                encoder, method, state, images, device_data, batch, lengths
            )
            return method.loss(features, labels, state)[0]

        params = sharding.shard_params(self.checkpoint.params, mesh)
        arguments = (params, *jax.device_put((self.device_data, batch), sharding.replicated(mesh)))
        return jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile(), arguments


@cache
def compiled(
    method: Method, micro: int, devices: int = 1, streamed: bool = False, remat: bool = False
):
    """See `World.gradient_function`."""
    return World(streamed).gradient_function(method, micro, devices, remat)


def gradient(*args, **kwargs) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradient."""
    function, arguments = compiled(*args, **kwargs)
    value, found = function(*arguments)
    return float(value), jax.device_get(found)


def assert_equal(found, expected, bound: float = 1e-5) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, wanted in expected[1].items():
        size = np.linalg.norm(wanted)
        assert size > 0, name
        assert np.linalg.norm(found[1][name] - wanted) <= bound * size, name


FULL = pytest.mark.full


@pytest.mark.parametrize("micro", [pytest.param(16, marks=FULL), 32, pytest.param(64, marks=FULL)])
def test_microbatches_give_the_gradient_of_the_whole_batch(micro):
    assert_equal(gradient(LATTECLIP, micro), gradient(LATTECLIP, BATCH))


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "devices", "streamed", "remat", "bound"),
    [
        (LATTECLIP, 8, True, True, 1e-5),
        # Its gradients differ by up to 4.4e-5 between any two orders of summation, all parameters'
        # alike.
        (FLYP(), 8, False, False, 5e-5),
    ],
)
def test_microbatches_with_devices_streams_and_methods(method, devices, streamed, remat, bound):
    found = gradient(method, 64, devices, streamed, remat)
    assert_equal(found, gradient(method, BATCH), bound)


def test_microbatches_keep_less_in_memory():
    sizes = [
        compiled(LATTECLIP, micro)[0].memory_analysis().temp_size_in_bytes for micro in (BATCH, 32)
    ]
    assert sizes[1] < sizes[0] / 3
