"""XLA's memory analysis of a step on several devices."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from benchmarks import memory
from lattec_jax.runtime import sharding

DEVICES = 8


@pytest.mark.soak
def test_parameters_and_optimizer_take_an_eighth_of_each_device(all_devices):
    model, mesh = memory.model_config("ViT-bigG-14"), sharding.make_mesh(DEVICES)
    found = memory.measure(model, 64, 64, True, jnp.float32, mesh)
    assert found.state <= 1.15 * found.full_state / DEVICES
    # What the compiled program takes is that and the tables, which lie on every device.
    pixels = memory.IMAGES * memory.LONG_SIDE**2 * 3
    tokens = 4 * memory.IMAGES * 2 * model.text.context_length
    assert found.state < found.arguments <= found.state + 1.1 * (pixels + tokens)
