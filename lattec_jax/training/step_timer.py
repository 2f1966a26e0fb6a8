"""Training time and throughput of a run."""

from __future__ import annotations

import time

import jax

from lattec_jax.training.state import TrainState


class StepTimer:
    """Measures the training time over all sessions of a run: from one start of the command to its
    end or interruption.

    Steps that were lost do not count, nor does what completes a checkpoint after the last step.
    """

    def __init__(
        self,
        batch_size: int,
        # Totals of the earlier sessions, as `record` returned them:
        seconds: float = 0.0,  # of training
        rated_seconds: float = 0.0,  # without the first step of each session, which compiles
        rated_images: int = 0,  # number of images in the steps of `rated_seconds`
    ) -> None:
        self._batch_size = batch_size
        self._start = time.perf_counter() - seconds
        self._rated_start: float | None = None  # known after the first step
        self._rated_seconds, self._rated_images = rated_seconds, rated_images
        self._lap_start, self._lap_images = self._start, 0

    def step(self, state: TrainState) -> None:
        """Count a step; wait for the first one."""
        if self._rated_start is None:
            jax.block_until_ready(state)
            self._lap_start = time.perf_counter()
            self._rated_start = self._lap_start - self._rated_seconds
        else:
            self._rated_images += self._batch_size
            self._lap_images += self._batch_size

    def record(self) -> dict[str, float]:
        """Return the arguments with which a later session continues."""
        now = time.perf_counter()
        if self._rated_start is not None:
            self._rated_seconds = now - self._rated_start
        return {
            "seconds": now - self._start,
            "rated_seconds": self._rated_seconds,
            "rated_images": self._rated_images,
        }

    def rate(self) -> float | None:
        """Images per second until the last `record`; None where only first steps were taken."""
        return self._rated_images / self._rated_seconds if self._rated_images else None

    def lap_metrics(self) -> dict[str, float]:
        """Return metrics for the log of the steps since the last call, which must have finished:
        images per second, evaluations and checkpoints included, and the peak of device memory where
        the backend reports it."""
        metrics, now = {}, time.perf_counter()
        if self._lap_images:
            metrics["images_per_second"] = self._lap_images / (now - self._lap_start)
        self._lap_start, self._lap_images = now, 0
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            metrics["device_memory_bytes"] = memory["peak_bytes_in_use"]
        return metrics
