"""Trace a few training steps with the JAX profiler, for XProf, TensorBoard or Perfetto.

`--config.profile=DIR` writes `DIR/plugins/profile/TIME/` with a trace for XProf (`*.xplane.pb`; or
for TensorBoard, after `pip install xprof`: `tensorboard --logdir=DIR`) and
`perfetto_trace.json.gz`, which ui.perfetto.dev opens. Only the main process is traced.
"""

from __future__ import annotations

from pathlib import Path

import jax

from lattec_jax.runtime import distributed
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import print_escaped

SKIPPED, TRACED = 2, 5  # steps: the first one compiles
NAME = "train"  # of a step in the trace, together with its number


class Profile:
    """Context manager that traces the third to seventh step of this process.

    A step in the trace lasts from the end of the step before to its own end, so that it includes
    logging and waiting for the batch. Raises ConfigError if the directory cannot be created.

    A continued run has done `start` of its `steps` already. The directory "" disables tracing.
    """

    def __init__(self, directory: str, start: int, steps: int) -> None:
        directory = directory if distributed.is_main_process() else ""
        self._directory = directory
        self._before, self._last = start + SKIPPED, min(start + SKIPPED + TRACED, steps)
        self._wanted = bool(directory) and self._before < self._last
        self._step: jax.profiler.StepTraceAnnotation | None = None
        if directory and not self._wanted:
            print_escaped(
                f"no trace in {directory}: it begins after {SKIPPED} steps, {steps - start} are "
                "left"
            )
        elif directory:
            try:  # now: the profiler would fail only at the end of the trace
                Path(directory).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"config.profile: expected a directory for the trace, or a path where one can "
                    f"be created, found {directory!r}: {error}"
                ) from error

    def __enter__(self) -> Profile:
        return self

    def step(self, done: int, state: object) -> None:
        """Call after dispatching the step `done`, with the state that it computes.

        Only the first and the last step of the trace wait for the devices.
        """
        if not self._wanted or not self._before <= done <= self._last:
            return
        if done == self._before:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # without every Python call
            jax.profiler.start_trace(
                self._directory, create_perfetto_trace=True, profiler_options=options
            )
        elif self._step is not None:
            self._step.__exit__(None, None, None)
        if done < self._last:
            self._step = jax.profiler.StepTraceAnnotation(NAME, step_num=done + 1)
            self._step.__enter__()
        else:
            self._step = None
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            print_escaped(f"trace of steps {self._before + 1} to {done} in {self._directory}")

    def __exit__(self, *error: object) -> None:
        if self._step is not None:  # the run ends before the trace does
            self._step.__exit__(None, None, None)
            jax.profiler.stop_trace()
