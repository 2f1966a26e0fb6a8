"""Several processes that train one model together, joined through `jax.distributed`.

Every process runs the same program on its own devices. They share a file system, where the first
process alone writes; the others wait and read. With one process nothing here does anything.

A process that fails while files are made or read tells the others, and all end with a message. One
that fails elsewhere, or is killed, is missed after `HEARTBEAT_TIMEOUT_S` seconds: JAX then ends the
others with status 134 and says that another task died. The same command started again continues.
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
from typing import Any

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

INIT_TIMEOUT_S = 300  # seconds that processes wait for each other at the start
HEARTBEAT_TIMEOUT_S = 60  # seconds without a sign of life after which a process counts as dead
BARRIER_TIMEOUT_S = 7 * 24 * 3600  # seconds that others wait while the first makes files
SIGNAL_LAG_STEPS = 2  # steps after which the processes know of each other's signals

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
_WELL, _FAILED, _INTERRUPTED = range(3)
_MARK = "hosts"  # a temporary directory that all processes must see
_numbers = itertools.count()  # of barriers, whose names must differ


# -------------------------------------------------------------------------------------- joining


def join(requested: bool) -> None:
    """Join the other processes, before JAX touches a device.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are; without the
    last two, JAX reads what Slurm, Open MPI, Kubernetes and TPU hosts tell it.

    Args:
        asked: the flag of `lattec_jax.runtime.cli.define_distributed`; without it nothing is
        joined.

    Raises:
        ConfigError: nothing tells who the others are.
    """
    if not requested:
        _say_if_alone(os.environ)
        return
    found = from_environment(os.environ)
    print(f"joining the other processes, for at most {INIT_TIMEOUT_S} seconds", file=sys.stderr)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # lattec_jax.runtime.preemption hears the signals
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=INIT_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--distributed: expected several processes started by Slurm (srun), Open MPI, "
            f"Kubernetes or on a TPU slice, or {', '.join(_VARIABLES)} to be set; JAX says: {error}"
        ) from error
    if jax.default_backend() == "cpu":
        # Programs that come from the cache mix up their collectives with gloo (jax 0.10.2).
        jax.config.update("jax_enable_compilation_cache", False)
    if not is_main_process():  # one voice is enough; errors are still said
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        logging.getLogger("lattec_jax").setLevel(logging.ERROR)


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize` that JAX does not read from variables by itself.

    Raises:
        ConfigError: they are incomplete or are not numbers.
    """
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


def _say_if_alone(environment: Mapping[str, str]) -> None:
    for name in _COUNTS:
        if environment.get(name, "1") not in ("", "1"):
            print(
                f"note: {name} is {environment[name]}, but each of these processes works alone; "
                "--distributed joins them",
                file=sys.stderr,
            )
            return


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


# ------------------------------------------------------------------------------------ agreement


def numbers_of_all(value: int) -> list[int]:
    """A number of every process, up to 2³² - 1; waits for all of them."""
    if count() == 1:
        return [value]
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # slow to import

    # Collectives of some devices give up after minutes; this does not.
    wait = get_barrier_sync_fn()
    wait(key=f"lattec_jax-{next(_numbers)}", timeout_ms=1000 * BARRIER_TIMEOUT_S)
    return multihost_utils.process_allgather(np.uint32(value)).tolist()


def broadcast_from_main(ask: Callable[[], bool]) -> bool:
    """What the first process finds. The others do not look: a file that was absent once may stay
    so for a while in what they remember of a shared file system."""
    return bool(numbers_of_all(int(is_main_process() and ask()))[0])


def all_agree(value: bool) -> bool:
    """Whether it is so on all processes."""
    return all(numbers_of_all(int(value)))


def broadcast(tree: Any) -> Any:
    """A tree of small arrays as the first process has it, so that all go on with the same bits."""
    return tree if count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def fetch(tree: Any) -> Any:
    """A tree of arrays as NumPy, whole on every process, wherever their parts lie."""
    if count() == 1:
        return jax.device_get(tree)

    def whole(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(whole, tree)


@contextlib.contextmanager
def raise_on_all() -> Iterator[None]:
    """A block that all processes leave alike: where it fails on one, it fails on all.

    Nothing in it may wait for the other processes, as computing with the whole mesh does.

    Raises:
        TrainingError: it went wrong on another process.
        Terminated: another process was interrupted in it.
    """
    if count() == 1:
        yield
        return
    status = _FAILED
    try:
        yield
        status = _WELL
    except KeyboardInterrupt:
        status = _INTERRUPTED
        raise
    finally:
        statuses = numbers_of_all(status)
    if _INTERRUPTED in statuses:
        raise Terminated("a signal to another process")
    if _FAILED in statuses:
        failed = [str(n) for n, found in enumerate(statuses) if found == _FAILED]
        raise TrainingError(
            f"process {', '.join(failed)} of {count()} (counted from 0) ended with an error; its "
            "own message says why"
        )


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """A block that the first process runs before the others do, which then find the files that it
    made. It fails on all processes where it fails on one (`together`)."""
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


def check_same_on_all(configuration: str, folder: Path) -> None:
    """Refuse processes that would not work on the same thing.

    Args:
        configuration: of this process, as text.
        folder: that all processes must share.

    Raises:
        ConfigError: they were started with other configurations, or this process does not see what
            the first one writes.
    """
    if count() == 1:
        return
    if len(set(numbers_of_all(zlib.crc32(configuration.encode())))) > 1:
        raise ConfigError(
            f"the {count()} processes were started with different configurations; give all of them "
            "the same command line and the same files"
        )
    with contextlib.ExitStack() as stack:
        token = 0
        with raise_on_all():
            if is_main_process():
                folder.mkdir(parents=True, exist_ok=True)
                remove_abandoned(folder, _MARK)
                mark = stack.enter_context(partial_directory(folder / _MARK))
                token = int(mark.name.split(".")[-2], 16)
        high, low = (numbers_of_all(half)[0] for half in divmod(token, 2**32))
        mark = partial_path(folder / _MARK, f"{high:08x}{low:08x}")
        with raise_on_all():
            if not is_main_process() and not wait_until_visible(mark):
                raise ConfigError(
                    f"process {jax.process_index()} of {count()} does not see {mark}, which the "
                    "first process made; all processes need one file system for the work "
                    "directory, config.artifacts and the images"
                )


class SignalAgreement:
    """Agreement on whether a signal came to any process
    (`lattec_jax.runtime.preemption.PreemptionHandler`).

    After each step the flags of all processes are sent on their way, and those of
    `SIGNAL_LAG_STEPS` steps before are looked at: the steps in between keep the devices busy
    meanwhile.
    """

    def __init__(self) -> None:
        self._under_way: deque[jax.Array] = deque()
        mesh = Mesh(np.asarray(jax.devices()), "all")
        self._split = NamedSharding(mesh, P("all"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))

    def soon(self, mine: bool) -> bool:
        """Whether one came some steps ago. Every process calls this after each step."""
        if count() == 1:
            return mine
        shape = (jax.device_count(),)
        flags = jax.make_array_from_callback(shape, self._split, lambda _: np.array([mine]))
        self._under_way.append(self._any(flags))
        return len(self._under_way) > SIGNAL_LAG_STEPS and bool(self._under_way.popleft())

    def now(self, mine: bool) -> bool:
        """Whether one came by now; waits for all processes."""
        return any(numbers_of_all(int(mine)))
