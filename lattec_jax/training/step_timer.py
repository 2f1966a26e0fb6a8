"""How long a run has trained, and how fast."""

from __future__ import annotations

import time

import jax

from lattec_jax.training.state import TrainState


class StepTimer:
    """Seconds of training over all sessions of a run; work that was lost does not count, nor does
    what goes on behind the last step to complete its checkpoint.

    Args:
        batch_size: images per step.
        seconds: until the step that this session starts from, as are the others.
        rated_seconds: without the first step of each session, which compiles.
        rated_images: trained on in those.
    """

    def __init__(
        self,
        batch_size: int,
        seconds: float = 0.0,
        rated_seconds: float = 0.0,
        rated_images: int = 0,
    ) -> None:
        self._batch_size = batch_size
        self._start = time.perf_counter() - seconds
        self._rated_start: float | None = None  # known after the first step
        self._rated_seconds, self._rated_images = rated_seconds, rated_images

    def step(self, state: TrainState) -> None:
        """Count a step; wait for the first one."""
        if self._rated_start is None:
            jax.block_until_ready(state)
            self._rated_start = time.perf_counter() - self._rated_seconds
        else:
            self._rated_images += self._batch_size

    def record(self) -> dict[str, float]:
        """The arguments from which a later session goes on."""
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
