"""Decode images in several processes, or in threads where there are few.

Threads share Python's lock, which holds 16 of them to the rate of about two cores. The processes
are started with `subprocess`, and exchange paths and sizes with this one by pipes; pixels never
pass through it. `multiprocessing` would run the main module of the user's program again in each
process, and fails where there is none, as in `python - < script.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Sequence
from signal import strsignal
from typing import IO, Any, Protocol, cast

from PIL import Image

from lattec_jax.data.images.decoder import Decoder
from lattec_jax.data.images.decoder_process import pillow_settings
from lattec_jax.data.images.preprocess import warn_of_16_bits
from lattec_jax.data.prefetch import prefetch, usable_cores
from lattec_jax.runtime.errors import DataError

MIN_IMAGES = 256  # of a process, so that starting it pays
# Signals are for the process that started this one, which then ends it; they must not end or
# interrupt it in the middle of its imports. The search path is as there.
_START = """
import signal
for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
    signal.signal(signal.Signals[name], signal.SIG_IGN)
import json, sys
sys.path[:], settings = json.loads(sys.argv[1])
from lattec_jax.data.images.decoder_process import main
main(settings)
"""

Block = tuple[int, Sequence[str]]  # number, paths


class Writer(Protocol):
    """Holds decoded blocks until their position in the files is known."""

    def write(self, block: int, row: int) -> None:
        """See `Decoder.write`."""
        ...


class DecoderPool(Protocol):
    """Several decoders."""

    blocks: int  # into how many blocks the images should be divided at least

    def open(self, files: Sequence[Sequence[Any]]) -> None:
        """See `Decoder.open`."""
        ...

    def map(self, method: str, blocks: Iterable[Block]) -> Generator[tuple[Writer, list[Any]]]:
        """Call a method of `Decoder` for each block. Yield the results in the order of the blocks,
        and what holds the block."""
        ...

    def finish(self) -> None:
        """Wait until all blocks are written."""
        ...

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        ...


def decoder_pool(images: int) -> DecoderPool:
    """Return threads, or as many processes as there are usable cores and as this number of images
    is worth.

    Raises:
        OSError: (from the methods) the disk is full.
        DataError: (from the methods) a process ended, killed for its memory for example.
    """
    count = min(usable_cores(), images // MIN_IMAGES)
    return DecoderProcesses(count) if count > 1 else DecoderThreads(images)


class DecoderThreads:
    """A `DecoderPool` of threads of this process."""

    def __init__(self, images: int) -> None:
        self.blocks = images
        self._decoder = Decoder()
        self.open, self.close = self._decoder.open, self._decoder.close

    def map(self, method: str, blocks: Iterable[Block]) -> Generator[tuple[Writer, list[Any]]]:
        call = getattr(self._decoder, method)
        return prefetch(lambda block: (self._decoder, call(*block)), blocks)

    def finish(self) -> None:
        """Blocks are written at once."""


class DecoderProcesses:
    """A `DecoderPool` of processes."""

    def __init__(self, count: int) -> None:
        self.blocks = 8 * count
        self._idle: queue.SimpleQueue[DecoderProcess] = queue.SimpleQueue()
        self._all: list[DecoderProcess] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)  # if one does not start
            for _ in range(count):
                self._all.append(DecoderProcess())
                self._idle.put(self._all[-1])
            stack.pop_all()

    def open(self, files: Sequence[Sequence[Any]]) -> None:
        for process in self._all:
            process.send("open", files)

    def map(self, method: str, blocks: Iterable[Block]) -> Generator[tuple[Writer, list[Any]]]:
        def call(block: Block) -> tuple[DecoderProcess, list[Any]]:
            process = self._idle.get()  # there are as many threads as processes
            try:
                return process, process.call(method, *block)
            finally:
                self._idle.put(process)

        count = len(self._all)
        return prefetch(call, blocks, threads=count, ahead=2 * count, abort=self._kill)

    def finish(self) -> None:
        for process in self._all:
            process.call("close")

    def _kill(self) -> None:
        for process in self._all:
            process.kill()

    def close(self) -> None:
        self._kill()
        for process in self._all:
            process.close()


class DecoderProcess:
    """A process that runs `decoder_process`, and the pipes to it."""

    def __init__(self) -> None:
        path = [entry or os.getcwd() for entry in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps([path, pillow_settings()])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # NumPy would start one per core
            process_group=0,  # Ctrl-C is for this process alone
        )
        self._input = cast(IO[bytes], self._process.stdin)
        self._output = cast(IO[bytes], self._process.stdout)
        self._sending = threading.Lock()

    def write(self, block: int, row: int) -> None:
        self.send("write", block, row)

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method of the decoder that is not answered."""
        with self._sending:
            try:
                self._input.write(json.dumps([method, *arguments]).encode() + b"\n")
                self._input.flush()
            except BrokenPipeError as error:
                raise self._ended([]) from error

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the decoder, and wait for its result."""
        self.send(method, *arguments)
        line = self._output.readline()
        if not line.endswith(b"\n"):
            raise self._ended(arguments[-1] if arguments else [])
        answer = json.loads(line)
        for category, message in answer["warnings"]:
            warnings.warn(message, getattr(Image, category, UserWarning), stacklevel=2)
        for path in answer["paths"]:
            warn_of_16_bits(path)
        if answer["error"]:
            raise OSError(*answer["error"])
        return answer["result"]

    def _ended(self, paths: Sequence[str]) -> DataError:
        status = self._process.wait()
        how = f"status {status}" if status >= 0 else f"signal {-status} ({strsignal(-status)})"
        where = (
            f" at one of the {len(paths)} images from {paths[0]} to {paths[-1]}" if paths else ""
        )
        return DataError(
            f"a process that decodes images ended with {how}{where}. Often memory is short: close "
            "other programs, or allow fewer cores (taskset), and repeat the command, which starts "
            "anew"
        )

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        for pipe in (self._input, self._output):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
