"""The parts of a transformer block, each against a reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lattec_jax.models import attention, blocks
from lattec_jax.models.attention import Packing
from tests.dummy import dummy_checkpoint


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_pools_the_token_that_the_full_block_gives(causal):
    """With the same gradient, for sequences of two lengths packed for two devices."""
    config = dummy_checkpoint().config.text
    block = blocks.Block(config, blocks.quick_gelu, causal, jnp.float32, None, nnx.Rngs(0))
    packing, rng = Packing(((4, 5), (2, 3)), 2), np.random.default_rng(0)
    x = rng.normal(size=(26, config.width)).astype(np.float32)
    positions = [jnp.array([0, 4, 2, 3]), jnp.array([2, 1])]
    weights = rng.normal(size=(6, config.width)).astype(np.float32)
    graph, params = nnx.split(block)

    constrain = attention.activation_constraint(None)

    def full(params, x):
        out = packing.select(nnx.merge(graph, params)(x, packing, constrain), positions)
        return (out * weights).sum(), out

    def pooled(params, x):
        out = nnx.merge(graph, params).pool(x, packing, constrain, positions)
        return (out * weights).sum(), out

    found, expected = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(params, x)
        for f in (pooled, full)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * max(1, np.abs(b).max())),
        found,
        expected,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norm_and_activation_against_float64(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    # Values far from zero, for which E[x²] − E[x]² would lose digits; one token is constant.
    x = (rng.normal(size=(6, 5, 32)) + rng.normal(size=(6, 5, 1)) * 20).astype(np.float32)
    x[0, 0] = 3.0
    x, weights = (jnp.asarray(a, dtype) for a in (x, rng.normal(size=x.shape)))
    scale, bias = jnp.asarray(rng.normal(size=(2, 32)), jnp.float32)

    def reference(function, *inputs):
        exact = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in inputs]
        out = function(*exact)
        (out * torch.tensor(np.asarray(weights, np.float64))).sum().backward()
        return [out.detach().numpy(), *(a.grad.numpy() for a in exact)]

    def ours(function, *inputs):
        out, pull = jax.vjp(function, *inputs)
        assert out.dtype == dtype
        return [np.asarray(a, np.float64) for a in (out, *pull(weights))]

    functional = torch.nn.functional
    pairs = (
        (
            ours(lambda *a: blocks.layer_norm(*a, 1e-5), x, scale, bias),
            reference(
                lambda a, *rest: functional.layer_norm(a, (32,), *rest, 1e-5), x, scale, bias
            ),
        ),
        (ours(blocks.exact_gelu, x), reference(functional.gelu, x)),
    )
    limit = 1e-5 if dtype == jnp.float32 else 4e-3  # half a step of bfloat16, 2⁻⁸
    for found, expected in pairs:
        for a, b in zip(found, expected, strict=True):
            assert np.linalg.norm(a - b) <= limit * np.linalg.norm(b)
