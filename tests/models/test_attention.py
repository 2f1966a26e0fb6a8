"""Packing of sequences and flash attention."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lattec_jax.models import attention
from lattec_jax.models.attention import Packing, has_flash_attention


def test_packing_groups_tokens_by_device_and_unpacks_them():
    packing = Packing(((4, 3), (2, 5)), 2)
    # Every token holds the number of its sequence.
    groups = [jnp.repeat(jnp.arange(4.0), 3), jnp.repeat(jnp.arange(4.0, 6.0), 5)]
    groups = [x.reshape(*shape, 1) for x, shape in zip(groups, packing.shapes, strict=True)]
    tokens = packing.pack(groups)
    assert tokens[:, 0].tolist() == [0] * 3 + [1] * 3 + [4] * 5 + [2] * 3 + [3] * 3 + [5] * 5
    for found, group in zip(packing.unpack(tokens), groups, strict=True):
        assert np.array_equal(found, group)


@dataclasses.dataclass(frozen=True)
class Device:
    platform: str
    device_kind: str
    compute_capability: str


@pytest.mark.parametrize(
    ("found", "width", "expected"),
    [
        (Device("gpu", "NVIDIA H200", "9.0"), 64, True),
        (Device("gpu", "NVIDIA H200", "9.0"), 60, False),  # no multiple of 8
        (Device("gpu", "NVIDIA H200", "9.0"), 160, False),
        (Device("gpu", "Tesla T4 (NVIDIA)", "7.5"), 64, False),
        (Device("gpu", "AMD Instinct MI300X", "gfx942"), 64, False),
        (Device("tpu", "TPU v5", ""), 64, False),
    ],
)
def test_flash_attention_where_cudnn_has_it(found, width, expected):
    mesh = Mesh(np.array([found], dtype=object), ("data",))
    assert has_flash_attention(mesh, width) is expected
    assert not has_flash_attention(None, width)


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.full)])
def test_odd_lengths_are_padded_for_flash_attention(monkeypatch, causal):
    """XLA's attention stands in for cuDNN's, which needs a GPU."""
    attend, lengths = jax.nn.dot_product_attention, []

    def stand_in(query, *rest, implementation, **options):
        assert implementation == "cudnn"
        lengths.append(query.shape[1])
        return attend(query, *rest, **options)

    rng = np.random.default_rng(0)
    for length in (7, 8):
        inputs = rng.normal(size=(3, 2, length, 4, 8)).astype(np.float32)
        weights = rng.normal(size=(2, length, 4, 8)).astype(np.float32)

        def value(inputs, mix, weights=weights):
            return (mix(*inputs, is_causal=causal) * weights).sum()

        expected = jax.value_and_grad(value)(inputs, attend)
        with monkeypatch.context() as patch:
            patch.setattr(jax.nn, "dot_product_attention", stand_in)
            found = jax.value_and_grad(value)(inputs, attention.flash_attention)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6), found, expected)
    assert set(lengths) == {8}
