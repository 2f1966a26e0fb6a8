"""The device mesh, and the shardings of arrays on it.

The batch is split over both mesh axes; parameters and optimizer state are split over `fsdp` if a
dimension is divisible; everything else is replicated. The computation is global: one device and
many give the same numbers up to the order of summation.

With several processes, each one provides only its part of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from lattec_jax.runtime.errors import ConfigError

BATCH = P(("data", "fsdp"))
MIN_SHARDED_SIZE = 2**14  # elements; smaller arrays are replicated, which costs less


def available_devices() -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """Return the default devices of a mesh: all devices of all processes."""
    return jax.devices()


def make_mesh(
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Return a mesh of the given devices (default: all). Each group of `fsdp` devices shares one
    copy of the parameters. Raise ConfigError if `fsdp` does not divide their number."""
    devices = available_devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ConfigError(
            f"config.compute.fsdp: expected a divisor of the {len(devices)} devices, found {fsdp}"
        )
    return Mesh(np.asarray(devices).reshape(-1, fsdp), ("data", "fsdp"))


def fitting_mesh(fsdp: int) -> Mesh:
    """Return a mesh of all devices with the `fsdp` of a run, or with 1 if that does not divide the
    number of devices: a finished run can be used on another machine."""
    return make_mesh(fsdp if len(available_devices()) % fsdp == 0 else 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has a full copy of."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first dimension is split over all devices."""
    return NamedSharding(mesh, BATCH)


def activations(mesh: Mesh) -> NamedSharding | None:
    """The sharding constraint of a model's activations, or None.

    With split parameters, the compiler might split the activations like the parameters instead of
    over the batch. Without, nothing needs to be constrained.
    """
    return over_batch(mesh) if mesh.shape["fsdp"] > 1 else None


def over_fsdp(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of a parameter: its largest divisible dimension is split over `fsdp`.

    The rule depends on the shape alone, so that the optimizer's moments are sharded like their
    parameter and an update needs no communication.
    """
    size = mesh.shape["fsdp"]
    if size == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return replicated(mesh)
    for dimension in sorted(range(len(shape)), key=lambda d: -shape[d]):
        if shape[dimension] % size == 0:
            return NamedSharding(mesh, P(*[None] * dimension, "fsdp"))
    return replicated(mesh)


def shard_params(params: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Place parameters on the mesh, sharded by `over_fsdp`."""
    return {name: to_devices(value, over_fsdp(mesh, value.shape)) for name, value in params.items()}


def to_devices(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """Transfer an array that every process has to the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    local = np.asarray(array)
    # Not device_put, which would compare the array between all processes.
    return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])


def place_tree(tree: Any, shardings: Any) -> Any:
    """Place a tree of arrays, of each of which every process has a copy or its shards."""

    def place_leaf(array: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, sharding)
        return to_devices(array, sharding)

    return jax.tree.map(place_leaf, tree, shardings)


def process_local_indices(mesh: Mesh, count: int) -> Int[np.ndarray, " n"]:
    """Return which of `count` entries of a batch are on devices of this process."""
    slices = over_batch(mesh).addressable_devices_indices_map((count,)).values()
    return np.sort(np.concatenate([np.arange(count)[index] for index in slices]))


def place_process_local(mesh: Mesh, count: int, entries: np.ndarray) -> jax.Array:
    """Place a batch of `count` entries, of which this process has its `process_local_indices`."""
    shape = (count, *entries.shape[1:])
    return jax.make_array_from_process_local_data(over_batch(mesh), entries, shape)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise ConfigError unless the batch is a multiple of the number of devices."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"config.train.batch_size: expected a multiple of the {mesh.size} devices, found "
            f"{batch_size}; use {batch_size // mesh.size * mesh.size or mesh.size}"
        )
