"""Devices: a mesh with the axes `data` and `fsdp`, and how each kind of array lies on it.

The batch is split over both axes; parameters and optimiser state are split over `fsdp` where a
dimension divides; everything else is on every device. The mathematics is global: one device and
many give the same numbers up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lattec_jax.errors import ConfigError

BATCH = P(("data", "fsdp"))
SMALLEST_SPLIT = 2**14  # arrays with fewer elements stay whole: splitting them costs more


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the given devices (all by default), `fsdp` of which share one copy of the
    parameters.

    Raises:
        ConfigError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ConfigError(
            f"config.compute.fsdp: expected a divisor of the {len(devices)} devices, found {fsdp}"
        )
    return Mesh(np.asarray(devices).reshape(-1, fsdp), ("data", "fsdp"))


def fitting_mesh(fsdp: int) -> Mesh:
    """All devices, `fsdp` as a run had it where it divides them, else 1: a finished run can be used
    on another machine."""
    return make_mesh(fsdp if jax.device_count() % fsdp == 0 else 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The first dimension split over all devices."""
    return NamedSharding(mesh, BATCH)


def activations(mesh: Mesh) -> NamedSharding | None:
    """How a model's activations lie; None where there is but one device."""
    return over_batch(mesh) if mesh.size > 1 else None


def over_fsdp(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The largest dimension that divides split over `fsdp`; the rule sees nothing but the shape,
    so a parameter and its optimiser moments always lie alike."""
    size = mesh.shape["fsdp"]
    if size == 1 or np.prod(shape, dtype=np.int64) < SMALLEST_SPLIT:
        return replicated(mesh)
    for dimension in sorted(range(len(shape)), key=lambda d: -shape[d]):
        if shape[dimension] % size == 0:
            return NamedSharding(mesh, P(*[None] * dimension, "fsdp"))
    return replicated(mesh)


def put(mesh: Mesh, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Place parameters on the mesh."""
    return {
        name: jax.device_put(value, over_fsdp(mesh, value.shape)) for name, value in arrays.items()
    }


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raise ConfigError unless the batch divides over the devices."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"config.train.batch_size: expected a multiple of the {mesh.size} devices, found "
            f"{batch_size}; {batch_size // mesh.size * mesh.size or mesh.size} would do"
        )
