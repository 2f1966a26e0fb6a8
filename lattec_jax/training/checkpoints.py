"""Checkpoints of a run: the only file that saves and restores with Orbax.

Saved are the step, the seed, the parameters, the optimizer state and the method's state, and beside
them what the caller wants to know again. Random numbers are rebuilt from seed and step and are not
saved. The newest `keep` checkpoints are kept; an older one goes when a newer one is complete.

Orbax moves a complete checkpoint into place. The SHA-256 of its files lie within it from that
moment on, because TensorStore's own checksums do not cover all of them.

Of several processes each writes and reads its own part of a state; the first one alone adds the
sums, judges a checkpoint by them and moves it.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from lattec_jax.runtime import distributed, safe_read
from lattec_jax.runtime.errors import ConfigError, TrainingError, WeightsError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.training.state import TrainState, state_shardings

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"  # as `sha256sum -c` reads them
_DESCRIBED = 2**20  # bytes of the files beside the arrays, ample
_MARK = "_CHECKPOINT_METADATA"  # Orbax changes it when it moves the checkpoint: it has no sum
# What Orbax and TensorStore raise on files that are damaged, or made by others, with sums that fit
# (found by damaging files at random). TensorStore's errors are ValueErrors.
_NOT_RESTORED = (
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


class Checkpoints:
    """The checkpoints below one work directory. Saving goes on in the background; use as a
    context manager so that leaving waits for it.

    Args:
        directory: made where it is missing.
        keep: how many are kept, at least 1.

    Raises:
        ConfigError: there is something else at that place.
    """

    def __init__(self, directory: Path, keep: int):
        if directory.exists() and not directory.is_dir():
            raise ConfigError(
                f"{directory}: expected a directory of checkpoints, found a file; move it away"
            )
        # Orbax logs an error of its threads several times; here it is raised once.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._directory, self._keep = directory.absolute(), keep
        with distributed.main_process_first():
            if distributed.is_main_process():
                self._set_aside_damaged_marks()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,  # of a killed process
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._saving = 0  # the step whose checkpoint is being written

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest saved step, None where there is none."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        step: int,
        beside: Mapping[str, Any],
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Save `state`, which may be consumed as soon as this returns.

        Args:
            state: after `step` steps.
            step: its number.
            beside: values that JSON can hold, which `restore` gives back.
            before: called in another thread before the checkpoint is complete; of several
                processes by the first one alone.

        Raises:
            TrainingError: it, or the one before, cannot be written.
        """
        self.wait()
        self._saving, self._before = step, before
        self._check_room(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_tree(state)), beside=ocp.args.JsonSave(dict(beside))
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise self._not_written(error) from error

    def _check_room(self, state: TrainState) -> None:
        """Ask first: where the disk fills up meanwhile, Orbax's threads bury the message under
        theirs."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _DESCRIBED
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            found = f"it may take {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
            raise self._not_written(OSError(found))

    def wait(self) -> None:
        """Return when what was saved is on disk.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # TensorStore's errors are ValueErrors
            raise self._not_written(error) from error

    def restore(self, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
        """The newest usable state and what was saved beside it; `like` itself where there is none.

        A checkpoint that cannot be used is renamed within the directory, with a warning, and the
        one before it is taken.

        Args:
            like: gives structure, shapes and seed.
            mesh: on which the state is placed.
        """
        refused = 0
        for step in sorted(self._manager.all_steps(), reverse=True):
            reason = damage(self._directory / str(step)) if distributed.is_main_process() else ""
            if distributed.all_agree(not reason):
                try:
                    found = self._read(step, like, mesh)
                    self._delete_surplus(step)
                    return found
                except _NOT_RESTORED as error:  # another tree, other shapes or another run's
                    reason = f"it is not of this run: {_first_line(error)}"
            self._set_aside(step, reason)
            refused += 1
        if refused:
            log.warning("no usable checkpoint is left in %s: starting at step 0", self._directory)
        return like, {}

    def _read(self, step: int, like: TrainState, mesh: Mesh) -> tuple[TrainState, dict[str, Any]]:
        shapes = jax.eval_shape(lambda s: s, like)
        target = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            state_shardings(shapes, mesh),
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(_as_tree(target)), beside=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=items)
        state = TrainState(**found["state"])
        expected, is_found = (step, int(like.seed)), (int(state.step), int(state.seed))
        if is_found != expected:
            raise ValueError(f"expected step and seed {expected}, found {is_found}")
        return state, found["beside"]

    def _delete_surplus(self, step: int) -> None:
        """Delete what a killed process had begun to delete: Orbax looks at it only when it saves,
        which a run that has done its last step does not do again."""
        for old in sorted(s for s in self._manager.all_steps() if s <= step)[: -self._keep]:
            self._manager.delete(old)

    def _set_aside_damaged_marks(self) -> None:
        """Orbax reads the marks of all steps when it opens the directory, and ends with any error
        for one that is damaged."""
        steps = [p for p in self._directory.glob("[0-9]*") if p.name.isdigit() and p.is_dir()]
        for place in sorted(steps):
            if reason := _damaged_mark(place):
                self._rename(int(place.name), reason)

    def _set_aside(self, step: int, reason: str) -> None:
        with distributed.main_process_first():
            if distributed.is_main_process():
                self._rename(step, reason)
        self._manager.reload()

    def _rename(self, step: int, reason: str) -> None:
        place = self._directory / str(step)
        number, new = 1, place.with_name(f"damaged-{step}")
        while new.exists():
            number += 1
            new = place.with_name(f"damaged-{step}-{number}")
        place.rename(new)
        log.warning("the checkpoint of step %d cannot be used and is now %s: %s", step, new, reason)

    def _write_sums(self) -> None:
        """Called by Orbax when all files are there, before it moves them into place."""
        self._before()
        (place,) = self._directory.glob(f"{self._saving}.*")
        write_atomic(place / SUMS, "".join(f"{s}  {name}\n" for name, s in _sums(place).items()))

    def _not_written(self, error: Exception) -> TrainingError:
        kept = sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdigit())
        return TrainingError(
            f"the checkpoint of step {self._saving} cannot be written to {self._directory}: "
            f"{str(error).splitlines()[0]}. "
            + (f"That of step {kept[-1]} is kept" if kept else "There is none yet")
            + "; make room, and the same command continues"
        )


def damage(checkpoint: Path) -> str:
    """What is wrong with the files of a checkpoint, by their SHA-256; empty where nothing is."""
    path = checkpoint / SUMS
    if reason := _damaged_mark(checkpoint):
        return reason
    if not path.is_file():
        return f"it has no {SUMS}"
    found = _sums(checkpoint)
    try:
        *lines, end = safe_read.read_text(path).split("\n")
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return f"{SUMS} is damaged"
    if end:
        return f"{SUMS} is cut short"
    missing = sorted(expected.keys() - found.keys())
    changed = sorted(
        name for name in found.keys() & expected.keys() if found[name] != expected[name]
    )
    # Where the list itself was cut short; Orbax adds marks of its own at the top afterwards.
    unlisted = [name for name in found.keys() - expected.keys() if "/" in name]
    if missing or changed or unlisted:
        return f"{', '.join((missing + changed)[:3]) or SUMS} is not as it was written"
    return ""


def _damaged_mark(checkpoint: Path) -> str:
    """What is wrong with Orbax's mark of a step; empty where nothing is."""
    path = checkpoint / _MARK
    if not path.exists():
        return ""
    try:
        mark = safe_read.read_json(path)
    except (OSError, ValueError) as error:
        return f"{_MARK} cannot be read: {error}"
    if not isinstance(mark, dict) or "item_handlers" not in mark:
        return f"{_MARK} is not as it was written"
    # Another release of Orbax may have further keys.
    wrong = [key for key, fits in _MARK_VALUES.items() if key in mark and not fits(mark[key])]
    return f"{_MARK} is not as it was written: {', '.join(wrong)}" if wrong else ""


def _is_time(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**63)


# What Orbax writes there for a run.
_MARK_VALUES = {
    "item_handlers": lambda value: isinstance(value, dict) and value.keys() == {"state", "beside"},
    "metrics": lambda value: value == {},
    "performance_metrics": lambda value: value == {},
    "init_timestamp_nsecs": _is_time,
    "commit_timestamp_nsecs": _is_time,
    "custom_metadata": lambda value: value == {},
}


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _sums(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of the files below a checkpoint that are read from it, by their path."""
    found = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        name = path.relative_to(checkpoint).as_posix()
        if name not in (SUMS, _MARK):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read(directory: Path, step: int) -> dict[str, Any]:
    """What is saved of one step, as NumPy arrays, whatever run and devices it is of; read by this
    process alone.

    Returns:
        The tree of `_as_tree`; the method's state as a dictionary of its fields.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        return _read_alone(directory, step)
    except _NOT_RESTORED as error:
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


def _as_tree(state: TrainState) -> dict:
    return {
        "step": state.step,
        "seed": state.seed,
        "params": state.params,
        "optimizer": state.optimizer,
        "method": state.method,
    }
