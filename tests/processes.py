"""Runs of several processes on this machine, joined over the loopback address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(
    place: Path, arguments: list[str], name: str, processes: int = 2, devices: int = 2
) -> list[subprocess.Popen]:
    """A command as `processes` processes with `devices` CPU devices each.

    Args:
        place: where it works; the output of process n goes to `<name>.<n>.log`.
        arguments: of `python -m`.
        name: of the logs.
        processes: 1: without `--distributed`.
        devices: of each.
    """
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    command = [sys.executable, "-m", *arguments]
    if processes > 1:
        command.append("--distributed")
    found = []
    for number in range(processes):
        with open(place / f"{name}.{number}.log", "ab") as log:
            found.append(
                subprocess.Popen(
                    command,
                    cwd=place,
                    env={**environment, "JAX_PROCESS_ID": str(number)},
                    stdout=log,
                    stderr=log,
                )
            )
    return found


def wait(place: Path, name: str, started: list[subprocess.Popen], status: int = 0) -> None:
    """Return when all have ended with `status`, within five minutes."""
    found = [process.wait(timeout=300) for process in started]
    logs = [(place / f"{name}.{n}.log").read_text() for n in range(len(started))]
    assert found == [status] * len(started), "\n".join(log[-3000:] for log in logs)
