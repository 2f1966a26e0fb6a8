"""Devices: a mesh with the axes `data` and `fsdp`, and how each kind of array lies on it.

The batch is split over both axes; parameters and optimizer state are split over `fsdp` where a
dimension divides; everything else is on every device. The mathematics is global: one device and
many give the same numbers up to the order of summation.

Where the devices belong to several processes, each hands over its own part of an array only.
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
SMALLEST_SPLIT = 2**14  # arrays with fewer elements stay whole: splitting them costs more


def available_devices() -> list[jax.Device]:
    """The devices that a mesh takes by default: all of the job's."""
    return jax.devices()


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (all by default), `fsdp` of which share one copy of the
    parameters.

    Raises:
        ConfigError: `fsdp` does not divide the number of devices.
    """
    devices = available_devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ConfigError(
            f"config.compute.fsdp: expected a divisor of the {len(devices)} devices, found {fsdp}"
        )
    return Mesh(np.asarray(devices).reshape(-1, fsdp), ("data", "fsdp"))


def fitting_mesh(fsdp: int) -> Mesh:
    """All devices, `fsdp` as a run had it where it divides them, else 1: a finished run can be used
    on another machine."""
    return make_mesh(fsdp if len(available_devices()) % fsdp == 0 else 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first dimension split over all devices."""
    return NamedSharding(mesh, BATCH)


def activations(mesh: Mesh) -> NamedSharding | None:
    """How a model's activations lie; None where no parameters are split, which alone would move
    them."""
    return over_batch(mesh) if mesh.shape["fsdp"] > 1 else None


def over_fsdp(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The largest dimension that divides split over `fsdp`; the rule sees nothing but the shape,
    so a parameter and its optimizer moments always lie alike."""
    size = mesh.shape["fsdp"]
    if size == 1 or np.prod(shape, dtype=np.int64) < SMALLEST_SPLIT:
        return replicated(mesh)
    for dimension in sorted(range(len(shape)), key=lambda d: -shape[d]):
        if shape[dimension] % size == 0:
            return NamedSharding(mesh, P(*[None] * dimension, "fsdp"))
    return replicated(mesh)


def put(mesh: Mesh, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place parameters on the mesh."""
    return {name: place(value, over_fsdp(mesh, value.shape)) for name, value in arrays.items()}


def place(array: np.ndarray, where: NamedSharding) -> jax.Array:
    """An array that every process has, on the devices."""
    if where.is_fully_addressable:
        return jax.device_put(array, where)
    # device_put would compare it on all processes.
    return jax.make_array_from_callback(array.shape, where, lambda part: array[part])


def place_tree(tree: Any, where: Any) -> Any:
    """A tree of arrays, each of which every process has or lies on all devices, where the tree
    `where` says."""

    def one(array: Any, there: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            return jax.device_put(array, there)
        return place(array if there.is_fully_addressable else np.asarray(array), there)

    return jax.tree.map(one, tree, where)


def process_local_indices(mesh: Mesh, count: int) -> Int[np.ndarray, " n"]:
    """Which of the rows of a batch lie on devices of this process: all of them where it is alone.

    Args:
        mesh: the devices.
        count: of the rows, a multiple of the devices.
    """
    parts = over_batch(mesh).addressable_devices_indices_map((count,)).values()
    return np.sort(np.concatenate([np.arange(count)[part] for part in parts]))


def place_process_local(mesh: Mesh, count: int, rows: np.ndarray) -> jax.Array:
    """A batch, split over all devices, of which this process has its `process_local_indices` only.

    Args:
        mesh: the devices.
        count: of the rows of the whole batch.
        rows: those of this process, in their order.
    """
    where = over_batch(mesh)
    if where.is_fully_addressable:
        return jax.device_put(rows, where)
    own = process_local_indices(mesh, count)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(count)
        first = np.searchsorted(own, start)
        return rows[first : first + stop - start]

    return jax.make_array_from_callback((count, *rows.shape[1:]), where, part)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise ConfigError unless the batch divides over the devices."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"config.train.batch_size: expected a multiple of the {mesh.size} devices, found "
            f"{batch_size}; {batch_size // mesh.size * mesh.size or mesh.size} would do"
        )
