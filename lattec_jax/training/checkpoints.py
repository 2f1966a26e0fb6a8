"""Save and restore checkpoints of a run with Orbax.

A checkpoint contains the step, the seed, the parameters, the optimizer state, the method's state,
and extra values of the caller. Random numbers are derived from seed and step. The newest
`max_to_keep` checkpoints are kept.

Order of events: the caller's log reaches the disk, then the checksums are written, then Orbax moves
the checkpoint into place. A checkpoint that exists is therefore complete, and so is the log up to
its step.

Every process writes and reads its part of the state. The main process alone writes checksums,
checks them, and renames damaged checkpoints.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from lattec_jax.runtime import distributed
from lattec_jax.runtime.errors import ConfigError, TrainingError, WeightsError
from lattec_jax.training.checkpoint_checksums import damage, metadata_damage, write_checksums
from lattec_jax.training.state import TrainState, state_shardings

log = logging.getLogger(__name__)

_OVERHEAD_BYTES = 2**20  # upper bound on the files of a checkpoint that hold no arrays
# What Orbax and TensorStore raise on files that are damaged, or were written by other software,
# with matching checksums (found by damaging files at random). TensorStore's errors are ValueErrors.
_RESTORE_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    MemoryError,
)


class CheckpointManager:
    """Wrapper of Orbax's `CheckpointManager` for the checkpoints of one run. Use as a context
    manager: checkpoints are saved in the background, and leaving the context waits for them.

    Raises:
        ConfigError: `directory` is a file.
    """

    def __init__(self, directory: Path, max_to_keep: int) -> None:
        if directory.exists() and not directory.is_dir():
            raise ConfigError(
                f"{directory}: expected a directory of checkpoints, found a file; move it away"
            )
        # Orbax logs errors of its threads several times; they are raised here once.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._directory, self._max_to_keep = directory.absolute(), max_to_keep
        with distributed.main_process_first():
            if distributed.is_main_process():
                self._set_aside_damaged_metadata()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            create=True,
            cleanup_tmp_directories=True,  # of a killed process
            async_options=ocp.AsyncOptions(post_finalization_callback=self._finalize),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._saving = 0  # the step whose checkpoint is being written
        self._before: Callable[[], object] = lambda: None

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest saved step; None if there is none."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        step: int,
        extra: Mapping[str, Any],
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Start saving `state`, whose buffers may be donated as soon as this returns.

        Args:
            extra: JSON values, which `restore` returns.
            before: called in another thread before the checkpoint is complete, on the main process
                only.

        Raises:
            TrainingError: this checkpoint or the one before cannot be written.
        """
        self.wait()
        self._saving, self._before = step, before
        self._check_space(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(dict(vars(state))), extra=ocp.args.JsonSave(dict(extra))
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def _check_space(self, state: TrainState) -> None:
        """Raise TrainingError now rather than let the disk fill up while Orbax writes: its threads
        would hide the message among their own."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD_BYTES
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            found = f"it may take {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
            raise self._write_error(OSError(found))

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk, or raise TrainingError."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # TensorStore's errors are ValueErrors
            raise self._write_error(error) from error

    def restore(self, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
        """Return the newest usable state and its extra values; `like` itself if there is none.

        A checkpoint that cannot be used, or whose structure, shapes or seed are not those of
        `like`, is renamed within the directory, with a warning.
        """
        refused = 0
        for step in sorted(self._manager.all_steps(), reverse=True):
            reason = damage(self._directory / str(step)) if distributed.is_main_process() else ""
            if distributed.all_agree(not reason):
                try:
                    found = self._restore_step(step, like, mesh)
                    self._delete_surplus(step)
                    return found
                except _RESTORE_ERRORS as error:  # another tree, other shapes or another run
                    reason = f"it cannot be restored into this run: {_first_line(error)}"
            with distributed.main_process_first():
                if distributed.is_main_process():
                    self._rename(step, reason)
            self._manager.reload()
            refused += 1
        if refused:
            log.warning("no usable checkpoint is left in %s: starting at step 0", self._directory)
        return like, {}

    def _restore_step(
        self, step: int, like: TrainState, mesh: Mesh
    ) -> tuple[TrainState, dict[str, Any]]:
        shapes = jax.eval_shape(lambda s: s, like)
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            state_shardings(shapes, mesh),
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(dict(vars(target))), extra=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=items)
        state = TrainState(**found["state"])
        expected, is_found = (step, int(like.seed)), (int(state.step), int(state.seed))
        if is_found != expected:
            raise ValueError(f"expected step and seed {expected}, found {is_found}")
        return state, found["extra"]

    def _delete_surplus(self, step: int) -> None:
        """Delete checkpoints that a killed process had begun to delete. Orbax does it only when it
        saves, which a run that has done its last step never does again."""
        for old in sorted(s for s in self._manager.all_steps() if s <= step)[: -self._max_to_keep]:
            self._manager.delete(old)

    def _set_aside_damaged_metadata(self) -> None:
        """Rename checkpoints with a damaged metadata file: Orbax reads these files of all steps
        when it opens the directory, and fails on a damaged one."""
        steps = [p for p in self._directory.glob("[0-9]*") if p.name.isdigit() and p.is_dir()]
        for checkpoint in sorted(steps):
            if reason := metadata_damage(checkpoint):
                self._rename(int(checkpoint.name), reason)

    def _rename(self, step: int, reason: str) -> None:
        path = self._directory / str(step)
        number, new = 1, path.with_name(f"damaged-{step}")
        while new.exists():
            number += 1
            new = path.with_name(f"damaged-{step}-{number}")
        path.rename(new)
        log.warning("the checkpoint of step %d cannot be used and is now %s: %s", step, new, reason)

    def _finalize(self) -> None:
        """Called by Orbax in its thread, between writing all files and moving them into place."""
        self._before()
        (partial,) = self._directory.glob(f"{self._saving}.*")
        write_checksums(partial)

    def _write_error(self, error: Exception) -> TrainingError:
        kept = sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdigit())
        return TrainingError(
            f"the checkpoint of step {self._saving} cannot be written to {self._directory}: "
            f"{str(error).splitlines()[0]}. "
            + (
                f"The checkpoint of step {kept[-1]} is kept"
                if kept
                else "No checkpoint has been saved yet"
            )
            + ". Free disk space and run the same command again"
        )


def read(directory: Path, step: int) -> dict[str, Any]:
    """Read one checkpoint as NumPy arrays, whatever its run and its devices, in this process alone.

    Returns the fields of `TrainState`, the method's state as a dictionary of its fields. Raises
    WeightsError if it cannot be read.
    """
    try:
        return _read_alone(directory, step)
    except _RESTORE_ERRORS as error:
        raise WeightsError(
            f"the checkpoint {directory / str(step)} cannot be read ({_first_line(error)}); name "
            "another step, or the weights that the run began with"
        ) from error


def _read_alone(directory: Path, step: int) -> dict[str, Any]:
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=str(jax.process_index()),
    )
    options = ocp.CheckpointManagerOptions(
        create=False, read_only=True, multiprocessing_options=alone
    )
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    with ocp.CheckpointManager(
        directory.absolute(), options=options, item_handlers=handlers
    ) as manager:
        tree = manager.item_metadata(step)["state"].tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        wanted = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=as_numpy))
        return manager.restore(step, args=wanted)["state"]


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
