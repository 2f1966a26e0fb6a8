"""A process that runs steps of one program of `benchmarks.train_step` on request.

    python -m benchmarks.step_worker PROGRAM FOLDER DTYPE

Each request is a line of JSON on standard input, its reply a line on standard output. While one
process runs, the others wait, so that each has all cores and a separate peak memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workload import Workload

SMALL = "small"  # folder of the workload for the comparison of results
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_resident_bytes() -> int:
    """Return the peak memory of this process since `reset_peak`."""
    line = next(n for n in STATUS.read_text().splitlines() if n.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Restart the measurement of the peak memory."""
    RESET.write_text("5")


def release_memory() -> None:
    """Return freed memory to the system for the next process."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


class WorkerProcess:
    """The client side: starts this module as a process and sends requests to it."""

    def __init__(self, program: str, folder: Path, dtype: str):
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",  # compilation is timed
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_worker", program, str(folder), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.program = program

    def call(self, do: str, variant: str, **arguments: int) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        self.send(do, variant, **arguments)
        return self.receive()

    def send(self, do: str, variant: str, **arguments: int) -> None:
        """Send a request: a method of the worker and its arguments."""
        with contextlib.suppress(BrokenPipeError):  # `receive` says that the process has ended
            self.process.stdin.write(json.dumps({"do": do, "variant": variant, **arguments}) + "\n")
            self.process.stdin.flush()

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for a reply, `timeout` seconds at most.

        Raises:
            RuntimeError: the process has ended, its message is on standard error; or the time is
                over, and the process was killed.
        """
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.process.kill()
            raise RuntimeError(f"the process of {self.program} gave no reply in {timeout:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.program} has ended; see its message")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


class OurWorker:
    """Serves requests to `benchmarks.ours`."""

    def __init__(self, work: Workload, folder: Path, dtype: str):
        import jax

        from benchmarks.ours import Ours

        jax.config.update("jax_enable_compilation_cache", False)
        self.jax, self.work, self.folder, self.dtype = jax, work, folder, dtype
        self.kind, self.loaded = Ours, None
        self.device = jax.devices()[0]

    def describe(self, variant: str) -> dict[str, Any]:
        """Return the device and version."""
        return {
            "device": f"{self.device.device_kind} ({self.device.platform})",
            "version": f"JAX {self.jax.__version__}",
            "platform": self.device.platform,
        }

    def check(self, variant: str) -> dict[str, Any]:
        """Save the results of the first float32 step on the small workload, and its inputs."""
        program = self.kind(Workload.load(self.folder / SMALL), "float32")
        self._save_inputs(program, self.folder / SMALL, 1)
        program.load(0)
        program.compile()
        np.savez(self.folder / f"first-{variant}.npz", **program.first())
        return {}

    def _save_inputs(self, program: Any, folder: Path, steps: int) -> None:
        """Save the initial prototypes and the crops, for the PyTorch programs."""
        np.save(folder / "prototypes.npy", program.prototypes)
        for step in range(steps):
            np.save(folder / f"crops-{step}.npy", program.crops(step))

    def prepare(self, variant: str) -> dict[str, Any]:
        """Create the program, and save the inputs of the other programs."""
        self.program = self.kind(self.work, self.dtype)
        self._save_inputs(self.program, self.folder, self.work.batches.steps_per_epoch)
        return {}

    def build(self, variant: str) -> dict[str, Any]:
        """Compile the program, after `prepare`."""
        self.program.load(0)
        seconds = self.program.compile()
        _, loss = self.program.timed()
        plan = self.program.compiled.memory_analysis()
        held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
        return {"compiling": seconds, "planned": held + plan.temp_size_in_bytes, "loss": loss}

    def run(self, variant: str, step: int) -> dict[str, Any]:
        """Time one step."""
        if step != self.loaded:
            self.program.load(step)
            self.jax.block_until_ready(self.program.batch)
            self.loaded = step
        if self.device.platform == "cpu":
            reset_peak()
        seconds, _ = self.program.timed()
        if self.device.platform == "cpu":
            return {"seconds": seconds, "peak": peak_resident_bytes()}
        return {"seconds": seconds, "peak": self.device.memory_stats()["peak_bytes_in_use"]}

    def free_memory(self, variant: str) -> dict[str, Any]:
        """Release memory that another program may need."""
        release_memory()
        return {}

    def matmul(self, variant: str, size: int) -> dict[str, Any]:
        """Return the FLOP/s of a product of two square matrices."""
        numpy = self.jax.numpy
        dtype = numpy.dtype(self.dtype)
        with self.jax.default_matmul_precision("highest"):
            multiply = self.jax.jit(lambda a, b: a @ b)
            a = self.jax.random.normal(self.jax.random.key(0), (size, size)).astype(dtype)
            return {"rate": rate(lambda: multiply(a, a).block_until_ready(), size)}


class TorchWorker:
    """Serves requests to `benchmarks.torch_release` and `benchmarks.torch_best`."""

    def __init__(self, work: Workload, folder: Path, dtype: str, name: str):
        import torch

        from benchmarks.torch_best import Best
        from benchmarks.torch_release import Release

        self.torch, self.work, self.folder, self.dtype = torch, work, folder, dtype
        self.program, self.loaded = None, None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.kind = {"release": Release, "best": Best}[name]
        torch.set_num_threads(len(os.sched_getaffinity(0)))

    def describe(self, variant: str) -> dict[str, Any]:
        """Return the device and version."""
        return {
            "version": f"PyTorch {self.torch.__version__}",
            "threads": self.torch.get_num_threads(),
        }

    def _make(self, work: Workload, folder: Path, dtype: str) -> Any:
        prototypes = np.load(folder / "prototypes.npy", allow_pickle=False)
        return self.kind(work, dtype, self.device, prototypes)

    def _load(self, program: Any, folder: Path, step: int) -> None:
        program.load(step, np.load(folder / f"crops-{step}.npy", allow_pickle=False))

    def _configure(self, program: Any, variant: str) -> None:
        if variant.startswith("release"):
            program.checkpointing(variant == "release-checkpointing")
        else:
            program.compiling(variant == "best-compiled")

    def check(self, variant: str) -> dict[str, Any]:
        """Save the results of the first float32 step on the small workload."""
        program = self._make(Workload.load(self.folder / SMALL), self.folder / SMALL, "float32")
        self._configure(program, variant)
        self._load(program, self.folder / SMALL, 0)
        np.savez(self.folder / f"first-{variant}.npz", **program.first())
        return {}

    def build(self, variant: str) -> dict[str, Any]:
        """Create the program; compilation time is the first step's excess over the second."""
        if self.program is None:
            self.program = self._make(self.work, self.folder, self.dtype)
        self._configure(self.program, variant)
        self._load(self.program, self.folder, 0)
        self.loaded = 0
        self.torch.compiler.reset()
        (first, loss), (second, _) = self.program.timed(), self.program.timed()
        return {"compiling": max(0.0, first - second), "loss": loss}

    def run(self, variant: str, step: int) -> dict[str, Any]:
        """Time one step."""
        self._configure(self.program, variant)
        if step != self.loaded:
            self._load(self.program, self.folder, step)
            self.loaded = step
        if self.device == "cpu":
            reset_peak()
            seconds, _ = self.program.timed()
            return {"seconds": seconds, "peak": peak_resident_bytes()}
        self.torch.cuda.synchronize()
        self.torch.cuda.reset_peak_memory_stats()
        seconds, _ = self.program.timed()
        return {"seconds": seconds, "peak": self.torch.cuda.max_memory_allocated()}

    def free_memory(self, variant: str) -> dict[str, Any]:
        """Release memory that another program may need."""
        if self.program is not None:
            self.program.optimizer.zero_grad(set_to_none=True)
        release_memory()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
        return {}

    def matmul(self, variant: str, size: int) -> dict[str, Any]:
        """Return the FLOP/s of a product of two square matrices."""
        a = self.torch.randn(size, size, device=self.device).to(getattr(self.torch, self.dtype))

        def multiply() -> None:
            self.torch.mm(a, a)
            if self.device == "cuda":
                self.torch.cuda.synchronize()

        return {"rate": rate(multiply, size)}


def rate(multiply: Any, size: int) -> float:
    """Return FLOP/s, the best of ten runs."""
    multiply()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def main() -> None:
    """Serve requests until standard input ends."""
    name, folder, dtype = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the replies
    work = Workload.load(folder)
    if name == "ours":
        worker = OurWorker(work, folder, dtype)
    else:
        worker = TorchWorker(work, folder, dtype, name)
    for line in sys.stdin:
        request = json.loads(line)
        reply = getattr(worker, request.pop("do"))(**request)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
