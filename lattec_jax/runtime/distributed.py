"""Multi-process training through `jax.distributed`.

Every process runs the same program on its own devices. All share a file system, to which only the
main process (process 0) writes. With a single process the functions here do nothing.

If a process fails while files are read or written, it tells the other processes, and all of them
exit with a message. If it fails elsewhere or is killed, JAX detects this within
`HEARTBEAT_TIMEOUT_S` seconds and aborts the other processes with status 134 ("another task died").
In both cases the same command continues the run.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lattec_jax.runtime.errors import ConfigError, TrainingError
from lattec_jax.runtime.files import (
    partial_directory,
    partial_path,
    remove_abandoned,
    wait_until_visible,
)
from lattec_jax.runtime.preemption import Terminated

T = TypeVar("T")
INIT_TIMEOUT_S = 300  # for all processes to connect at the start
HEARTBEAT_TIMEOUT_S = 60  # without a heartbeat, before a process is considered dead
BARRIER_TIMEOUT_S = 7 * 24 * 3600  # for the main process to write files, such as image caches
SIGNAL_LAG_STEPS = 2  # steps until all processes act on a signal to one of them

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
_SUCCEEDED, _FAILED, _INTERRUPTED = range(3)
_PROBE = "shared_filesystem"  # a temporary directory that all processes must see
_barrier_ids = itertools.count()  # every barrier needs a key of its own


# --------------------------------------------------------------------------------- initialization


def initialize(requested: bool) -> None:
    """Connect to the other processes. Must be called before JAX uses a device.

    The processes are described by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Without the last two, JAX uses the environment of Slurm, Open MPI, Kubernetes or a TPU slice.

    Raise ConfigError if the environment does not describe the processes. If they are not
    `requested` by `--distributed`, this process runs alone.
    """
    if not requested:
        for name in _COUNTS:
            if os.environ.get(name, "1") not in ("", "1"):
                print(
                    f"note: {name} is {os.environ[name]}, but each of these processes works alone; "
                    "lattec_jax.train --distributed joins them",
                    file=sys.stderr,
                )
                break
        return
    arguments = from_environment(os.environ)
    print(f"joining the other processes, for at most {INIT_TIMEOUT_S} seconds", file=sys.stderr)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Signals are handled by lattec_jax.runtime.preemption.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=INIT_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--distributed: expected several processes started by Slurm (srun), Open MPI, "
            f"Kubernetes or on a TPU slice, or {', '.join(_VARIABLES)} to be set; JAX: {error}"
        ) from error
    if jax.default_backend() == "cpu":
        # With gloo, programs from the compilation cache confuse their collectives (jax 0.10.2).
        jax.config.update("jax_enable_compilation_cache", False)
    if not is_main_process():  # only the main process prints; errors are printed by all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        logging.getLogger("lattec_jax").setLevel(logging.ERROR)


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of `jax.distributed.initialize` that JAX does not read from the
    environment by itself. Raise ConfigError if they are incomplete or not numbers."""
    given = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    if not given.keys() & set(_VARIABLES[1:]):
        return {}
    try:
        address, count, number = (given[name] for name in _VARIABLES)
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(number),
            "cluster_detection_method": "deactivate",
        }
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"--distributed: expected {_VARIABLES[0]}=HOST:PORT, {_VARIABLES[1]}=2 (for two) and "
            f"{_VARIABLES[2]}=0 or 1, found {given or 'none of them'}"
        ) from error


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def is_main_process() -> bool:
    """Return whether this is process 0, the only one that writes files."""
    return jax.process_index() == 0


# ------------------------------------------------------------------------------------ agreement


def allgather(value: int) -> list[int]:
    """Return the value of every process (0 to 2³² - 1); waits for all of them."""
    if count() == 1:
        return [value]
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # slow to import

    # Collectives time out after minutes on some devices: wait at a barrier, which does not, first.
    barrier = get_barrier_sync_fn()
    barrier(key=f"lattec_jax-{next(_barrier_ids)}", timeout_ms=1000 * BARRIER_TIMEOUT_S)
    return multihost_utils.process_allgather(np.uint32(value)).tolist()


def broadcast_from_main(condition: Callable[[], bool]) -> bool:
    """Return `condition()` of the main process; it is not called on other processes. (A network
    file system may remember that a file did not exist, so that the processes would disagree.)"""
    return bool(allgather(int(is_main_process() and condition()))[0])


def all_agree(value: bool) -> bool:
    """Return whether `value` is True on all processes."""
    return all(allgather(int(value)))


def broadcast(tree: Any) -> Any:
    """Return a tree of small arrays as the main process has it, equal to the bit on all."""
    return tree if count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def fetch(tree: Any) -> Any:
    """Return a tree of arrays as NumPy arrays, complete on every process, however they are
    sharded."""
    if count() == 1:
        return jax.device_get(tree)

    def gather(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(gather, tree)


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
    """Make the block raise on all processes if it raises on one: TrainingError on the others, or
    Terminated if that one was interrupted.

    The block must not wait for other processes, as a computation on the full mesh does.
    """
    if count() == 1:
        yield
        return
    status = _FAILED
    try:
        yield
        status = _SUCCEEDED
    except KeyboardInterrupt:
        status = _INTERRUPTED
        raise
    finally:
        statuses = allgather(status)
    if _INTERRUPTED in statuses:
        raise Terminated("a signal to another process")
    if _FAILED in statuses:
        failed = [str(n) for n, found in enumerate(statuses) if found == _FAILED]
        raise TrainingError(
            f"process {', '.join(failed)} of {count()} (counted from 0) ended with an error; its "
            "error message states the reason"
        )


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on the main process, then on the other processes, which find the files that it
    wrote. It raises on all processes if it raises on one (`raise_on_all`)."""
    if is_main_process():
        with raise_on_all():
            yield
        with raise_on_all():
            pass
    else:
        with raise_on_all():
            pass
        with raise_on_all():
            yield


def write_then_read(write: Callable[[], T], read: Callable[[], T]) -> T:
    """Return what the main process returns from `write`, and the others then from `read`."""
    with main_process_first():
        return write() if is_main_process() else read()


def check_same_on_all(configuration: str, folder: Path) -> None:
    """Raise ConfigError unless all processes have the same configuration and share `folder`."""
    if count() == 1:
        return
    if len(set(allgather(zlib.crc32(configuration.encode())))) > 1:
        raise ConfigError(
            f"the {count()} processes were started with different configurations; give all of them "
            "the same command line and the same files"
        )
    with contextlib.ExitStack() as stack:
        token = 0
        with raise_on_all():
            if is_main_process():
                folder.mkdir(parents=True, exist_ok=True)
                remove_abandoned(folder, _PROBE)
                probe = stack.enter_context(partial_directory(folder / _PROBE))
                token = int(probe.name.split(".")[-2], 16)
        high, low = (allgather(half)[0] for half in divmod(token, 2**32))
        probe = partial_path(folder / _PROBE, f"{high:08x}{low:08x}")
        with raise_on_all():
            if not is_main_process() and not wait_until_visible(probe):
                raise ConfigError(
                    f"process {jax.process_index()} of {count()} does not see {probe}, which the "
                    "main process made; all processes need one file system for the work "
                    "directory, config.artifacts and the images"
                )


class SignalAgreement:
    """Agreement on whether any process received a signal; see
    `lattec_jax.runtime.preemption.PreemptionHandler`.

    After each step, the flags of all processes are combined on the devices, and the result of
    `SIGNAL_LAG_STEPS` steps before is fetched: waiting for the current one would leave the devices
    idle.
    """

    def __init__(self) -> None:
        self._pending: deque[jax.Array] = deque()
        mesh = Mesh(np.asarray(jax.devices()), "all")
        self._per_device = NamedSharding(mesh, P("all"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))

    def any_process_delayed(self, mine: bool) -> bool:
        """Return whether any process had received a signal `SIGNAL_LAG_STEPS` steps ago. All
        processes call this after each step."""
        if count() == 1:
            return mine
        shape = (jax.device_count(),)
        flags = jax.make_array_from_callback(shape, self._per_device, lambda _: np.array([mine]))
        self._pending.append(self._any(flags))
        return len(self._pending) > SIGNAL_LAG_STEPS and bool(self._pending.popleft())

    def any_process_now(self, mine: bool) -> bool:
        """Return whether any process has received a signal by now; waits for all processes."""
        return any(allgather(int(mine)))
