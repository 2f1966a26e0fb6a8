"""How much memory JAX may use on each device, and what it raises when that is not enough."""

from __future__ import annotations

import os
from pathlib import Path

import jax

CGROUP = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")


def device_memory() -> int:
    """Return the bytes that JAX may use on a device of this process. CPU devices share the memory
    of the host, or what the control group of the process may use of it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return limit
    return host_memory() // jax.local_device_count()


def host_memory() -> int:
    """Return the bytes of the host's memory, or of the process's control group (version 2) if that
    allows less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A container sees its own group as the root; on a host, such as with Slurm, it is deeper.
    groups = [CGROUP]
    if CGROUP_OF_PROCESS.is_file():
        for line in CGROUP_OF_PROCESS.read_text().splitlines():
            if line.startswith("0::/"):
                own = CGROUP / line.removeprefix("0::/")
                groups += [own, *(p for p in own.parents if CGROUP in p.parents)]
    limits = (group / "memory.max" for group in groups)
    found = [path.read_text().strip() for path in limits if path.is_file()]
    return min([memory, *(int(limit) for limit in found if limit.isdigit())])


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of JAX means that a device has too little memory."""
    return "RESOURCE_EXHAUSTED" in str(error)
