"""InfoNCE in blocks against NumPy in float64, and what a global batch of 32,768 allocates."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.special import logsumexp, softmax

from lattec_jax.methods.contrastive import info_nce
from lattec_jax.runtime import sharding

LARGE, DIMENSION = 32_768, 512
QUICK = ((2, 1), (7, 20), (12, 60), (12, 2**25))  # a row at a time, an odd rest, blocks, the whole


def features(count: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, 6))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def reference(images: np.ndarray, texts: np.ndarray, logit_scale: float) -> tuple[float, tuple]:
    """The loss and its gradient by hand, in float64."""
    images, texts = images.astype(np.float64), texts.astype(np.float64)
    cosines = images @ texts.T
    logits, count = logit_scale * cosines, len(images)
    own = np.eye(count)
    loss = np.sum(logsumexp(logits, axis=1) + logsumexp(logits, axis=0) - 2 * np.diag(logits))
    slope = (softmax(logits, axis=1) + softmax(logits, axis=0) - 2 * own) / count
    return loss / count, (
        logit_scale * slope @ texts,
        logit_scale * slope.T @ images,
        np.sum(slope * cosines),
    )


@pytest.mark.parametrize(
    ("count", "max_logits"),
    [
        pytest.param(count, most, marks=() if (count, most) in QUICK else pytest.mark.full)
        for count in (2, 7, 12, 16)
        for most in (1, 20, 60, 2**25)
    ],
)
def test_blocks_of_any_size_give_the_loss_and_its_gradient(count, max_logits):
    arrays = (features(count, 0), features(count, 1), np.float32(14.0))
    found = jax.jit(jax.value_and_grad(info_nce, (0, 1, 2)), static_argnums=3)(*arrays, max_logits)
    value, gradient = reference(*arrays)
    np.testing.assert_allclose(found[0], value, rtol=2e-6)
    for one, other in zip(found[1], gradient, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_global_batch_of_32768_has_no_matrix_of_that_side(devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    rows = jax.ShapeDtypeStruct((LARGE, DIMENSION), jnp.float32, sharding=sharding.over_batch(mesh))
    logit_scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    gradient = jax.jit(jax.grad(info_nce, (0, 1, 2)))
    compiled = gradient.lower(rows, rows, logit_scale).compile()
    largest = max(
        np.prod([int(d) for d in dims.split(",")], dtype=np.int64)
        for dims in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    )
    assert largest <= 2**25 // devices, largest  # elements; B x B would be 2**30
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"{devices} devices: {temporary / 2**20:.0f} MiB of temporary buffers each")
    assert temporary < LARGE * LARGE * 4 / 4


def test_an_array_of_another_shape_is_refused():
    """By the annotations of the packages, which the tests check at every call."""
    images, scale = jnp.ones((4, 8)), jnp.float32(3)
    info_nce(images, images, scale)
    with pytest.raises(TypeCheckError, match=r"parameters of .*info_nce"):
        info_nce(images, images[:, :7], scale)
    with pytest.raises(TypeCheckError, match=r"parameters of .*info_nce"):
        info_nce(images, images, jnp.ones(4))
