"""A JAX trace of a few training steps, for TensorBoard, XProf or Perfetto.

`--config.profile=DIR` writes `DIR/plugins/profile/TIME/` with the trace of XProf (`*.xplane.pb`;
TensorBoard shows it where `pip install xprof` brought its plugin: `tensorboard --logdir=DIR`) and
`perfetto_trace.json.gz`, which ui.perfetto.dev opens. Of several processes the first one traces.
"""

from __future__ import annotations

from pathlib import Path

import jax

from lattec_jax.runtime import distributed
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import print_escaped

SKIPPED, TRACED = 2, 5  # steps: the first of a session compiles
NAME = "train"  # of a step in the trace, beside its number


class Profile:
    """Traces the steps from the third to the seventh of a session. A context manager.

    A step of the trace goes from the end of the step before to its own, so that logging and waiting
    for the batch belong to it.

    Args:
        directory: for the trace; "": nothing is traced.
        start: the step that this session starts from.
        steps: of the whole run.

    Raises:
        ConfigError: the directory cannot be created.
    """

    def __init__(self, directory: str, start: int, steps: int) -> None:
        directory = directory if distributed.is_main_process() else ""
        self._directory = directory
        self._before, self._last = start + SKIPPED, min(start + SKIPPED + TRACED, steps)
        self._wanted = bool(directory) and self._before < self._last
        self._step: jax.profiler.StepTraceAnnotation | None = None  # the one that is traced now
        if self._wanted:
            _make_directory(directory)
        if directory and not self._wanted:
            left = steps - start
            print_escaped(
                f"no trace in {directory}: it begins after {SKIPPED} steps, {left} are left"
            )

    def __enter__(self) -> Profile:
        return self

    def step(self, done: int, state: object) -> None:
        """Say that the step `done` was sent to the devices, and what it will give.

        Its work may still be going on; only at the two ends of the trace it is waited for.
        """
        if not self._wanted or not self._before <= done <= self._last:
            return
        if done == self._before:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call would hide what matters
            jax.profiler.start_trace(
                self._directory, create_perfetto_trace=True, profiler_options=options
            )
        else:
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


def _make_directory(directory: str) -> None:
    """The profiler would find out at the end of the trace, with the run half done."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"config.profile: expected a directory for the trace, or a path where one can be "
            f"created, found {directory!r}: {error}"
        ) from error
