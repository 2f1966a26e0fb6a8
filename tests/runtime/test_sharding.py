"""The mesh, and where arrays lie on it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lattec_jax.runtime import sharding
from lattec_jax.runtime.errors import ConfigError

pytestmark = pytest.mark.usefixtures("all_devices")


def test_the_mesh_takes_all_devices():
    mesh = sharding.make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert sharding.make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_a_share_that_does_not_divide_the_devices_is_refused(fsdp):
    with pytest.raises(ConfigError, match=f"divisor of the 8 devices, found {fsdp}"):
        sharding.make_mesh(fsdp)


def test_the_largest_dimension_that_divides_is_split():
    mesh = sharding.make_mesh(fsdp=4)
    assert sharding.over_fsdp(mesh, (128, 512)).spec == P(None, "fsdp")
    assert sharding.over_fsdp(mesh, (512, 130)).spec == P("fsdp")
    assert sharding.over_fsdp(mesh, (128, 513)).spec == P("fsdp")
    assert sharding.over_fsdp(mesh, (129, 513)).spec == P()  # nothing divides
    assert sharding.over_fsdp(mesh, (64, 64)).spec == P()  # too small to be worth it
    assert sharding.over_fsdp(mesh, ()).spec == P()
    assert sharding.over_fsdp(sharding.make_mesh(), (128, 512)).spec == P()


def test_parameters_are_placed_by_the_rule():
    mesh = sharding.make_mesh(fsdp=8)
    placed = sharding.shard_params(
        {"big": np.ones((64, 512), np.float32), "small": np.ones(3)}, mesh
    )
    assert placed["big"].addressable_shards[0].data.shape == (64, 64)
    assert placed["small"].is_fully_replicated


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    mesh = sharding.make_mesh()
    sharding.check_batch(64, mesh)
    with pytest.raises(ConfigError, match="multiple of the 8 devices, found 20; use 16"):
        sharding.check_batch(20, mesh)
    with pytest.raises(ConfigError, match="found 5; use 8"):
        sharding.check_batch(5, mesh)
