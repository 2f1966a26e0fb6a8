"""Measure the time of `--help` and `-h` for every command, each in a new process.

    python -m benchmarks.help_time

Prints Markdown: exit status and wall-clock seconds of each, and the CPU seconds of `--help`. The
last row is `train` with a configuration, which also lists its keys.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lattec_jax.commands import COMMANDS
from lattec_jax.runtime.cli import command, read

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ("--config=configs/demo.py",)


def run(module: str, *arguments: str) -> tuple[int, float, float]:
    """Return exit status, wall-clock seconds and CPU seconds of one process."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system
    return done.returncode, seconds, cpu - before.children_user - before.children_system


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    read(argv, __doc__)
    print("| command | `--help`: status | seconds | CPU seconds | `-h`: status | seconds |")
    print("|---|--:|--:|--:|--:|--:|")
    for module, extra in [
        ("lattec_jax", ()),
        *((m, ()) for m in COMMANDS.values()),
        ("lattec_jax.train", CONFIG),
    ]:
        status, seconds, cpu = run(module, *extra, "--help")
        short_status, short, _ = run(module, *extra, "-h")
        name = " ".join(("python -m", module, *extra))
        print(f"| `{name}` | {status} | {seconds:.2f} | {cpu:.2f} | {short_status} | {short:.2f} |")


if __name__ == "__main__":
    command(main)
