"""The work directory of a run: its file names, its lock, and whether a run may be resumed in it.

One run at a time uses a work directory. The lock is a flock, so it ends with the process that holds
it, also when that process is killed. In a run of several processes, the main process holds it.
Imports no JAX.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.runtime import safe_read
from lattec_jax.runtime.config import flatten, from_json, to_json
from lattec_jax.runtime.errors import ConfigError, differences, short_repr
from lattec_jax.runtime.files import (
    PARTIAL,
    lock,
    remove_abandoned,
    wait_until_visible,
    write_atomic,
    write_json,
)

CONFIG = "config.json"
INPUTS = "inputs.json"  # hashes of the weights, images and texts
RESULTS = "results.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
REPORT_DATA = "report_data.json"  # read by the report, in addition to results and metrics
CHECKPOINTS = "checkpoints"
MODEL = "model"  # the adapted CLIP, a checkpoint directory
CLASSIFIER = "classifier.safetensors"  # the class weights of the zero-shot head
LOCK = "lock"
COUNTS = ("n_train", "n_test")  # keys of `inputs.json` that a run of 0.2.0 lacks
MAX_NAMES = 5  # class names listed in a message

# Configuration keys that may differ when a run is resumed: they do not change the results, except
# for the order of summation.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "compute.eval_batch_size",
        "compute.fsdp",
        "compute.remat",
        "profile",
        "image_cache.placement",
        "trackers",
        "train.microbatch_size",
    }
)

log = logging.getLogger(__name__)
# Work directory locked by this process -> thread that locked it, and descriptor of the lock.
_held: dict[Path, tuple[int, int]] = {}


def check_available(workdir: Path, config: ConfigDict) -> None:
    """Check that a run with this configuration may use a work directory. Writes nothing.

    Raise ConfigError if the directory belongs to a run with another configuration (the message
    lists the keys that differ), contains unrelated files, or is in use by another process.
    """
    path = workdir / CONFIG
    if path.exists():
        if listed := _config_differences(from_json(path), config):
            raise ConfigError(
                f"{workdir} belongs to a run with another configuration; choose another --workdir, "
                f"or repeat that run's command to continue it. Differing keys:{listed}"
            )
    elif workdir.exists() and (
        not workdir.is_dir()
        or any(p.suffix != PARTIAL and p.name not in (INPUTS, LOCK) for p in workdir.iterdir())
    ):
        raise ConfigError(
            f"{workdir} is not empty and is not a work directory (it has no {CONFIG}); choose "
            "another --workdir"
        )
    if (workdir / LOCK).exists() and not _is_held(workdir):
        os.close(_lock(workdir, os.O_RDONLY, fcntl.LOCK_SH))


def check_same_inputs(workdir: Path, inputs: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a run is resumed with the data, weights and texts of its start."""
    if not (workdir / INPUTS).exists():
        return
    if listed := _input_differences(read_inputs(workdir), inputs):
        raise ConfigError(
            f"the run in {workdir} started with other inputs; restore them to continue it, or "
            f"choose another --workdir. Differences:{listed}"
        )


def read_inputs(workdir: Path) -> dict[str, Any]:
    """Read `inputs.json`. Raise ConfigError if it is missing or damaged."""
    from lattec_jax.runtime import schemas

    advice = "restore the run's own file"
    return schemas.read(workdir / INPUTS, schemas.Inputs, ConfigError, advice)


def acquire(workdir: Path, config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Lock a work directory for a run, new or resumed, and write its configuration and inputs.

    Raise ConfigError as the two checks above do, or if the directory cannot be written.
    """
    check_available(workdir, config)
    check_same_inputs(workdir, inputs)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not _is_held(workdir):
            descriptor = _lock(workdir, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
            _held[workdir.resolve()] = threading.get_ident(), descriptor
        remove_abandoned(workdir)
        # The configuration is written last: where it exists, the inputs exist too.
        if not (workdir / INPUTS).exists():
            write_json(workdir / INPUTS, inputs)
        if not (workdir / CONFIG).exists():
            write_atomic(workdir / CONFIG, to_json(config))
    except OSError as error:
        raise ConfigError(f"cannot write the work directory {workdir}: {error}") from error


def release(workdir: Path) -> None:
    """Unlock a work directory that this thread has locked, so that others may use it; the end of a
    process does it too."""
    if _is_held(workdir):
        _, descriptor = _held.pop(workdir.resolve())
        os.close(descriptor)


def _is_held(workdir: Path) -> bool:
    """Return whether this thread has locked a work directory."""
    thread, _ = _held.get(workdir.resolve(), (None, None))
    return thread == threading.get_ident()


def check_acquired(workdir: Path, config: ConfigDict, inputs: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the main process acquired the directory for this process's run."""
    wait_until_visible(workdir / CONFIG)
    listed = _config_differences(from_json(workdir / CONFIG), config)
    if listed := listed + _input_differences(read_inputs(workdir), inputs):
        raise ConfigError(
            f"the main process of the run in {workdir} has other inputs than this process; all "
            "processes need the same command line, and the same weights and images. "
            f"Differences:{listed}"
        )


def _lock(workdir: Path, mode: int, kind: int) -> int:
    """Return the descriptor of the lock; closing it releases the lock.

    A file system without locks, such as some mounts of Lustre, only leads to a warning.
    """
    descriptor = os.open(workdir / LOCK, mode | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        unsupported = lock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        raise ConfigError(
            f"another process works in {workdir}, or another thread of this one; wait until it "
            "ends, or choose another --workdir"
        ) from error
    if unsupported and kind == fcntl.LOCK_EX:
        log.warning(
            "the file system of %s has no locks (%s); make sure that no other process uses this "
            "directory", workdir, unsupported.strerror,
        )  # fmt: skip
    return descriptor


def _input_differences(before: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    now = {k: v for k, v in _as_json(inputs).items() if k in before or k not in COUNTS}
    names = (values.get("class_names", []) for values in (before, now))
    return differences(before, now) + _name_differences(*names)


def _config_differences(before: ConfigDict, now: ConfigDict) -> str:
    values = _fixed_values(before), _fixed_values(now)
    keys = sorted(values[0].keys() | values[1].keys())
    listed = differences(*({key: own.get(key, "(absent)") for key in keys} for own in values))
    return listed + _name_differences(*map(_class_lines, values))


def _class_lines(values: Mapping[str, Any]) -> list[str]:
    """Return the lines of the file of class names; none if it cannot be read."""
    setting = Path(str(values.get("dataset.class_names"))).expanduser()
    for path in (Path(str(values.get("dataset.root"))).expanduser() / setting, setting):
        try:
            lines = safe_read.read_text(path, encoding="utf-8-sig").split("\n")
        except (OSError, ValueError):
            continue
        return [line.strip() for line in lines if line.strip()]
    return []


def _name_differences(before: Sequence[str], now: Sequence[str]) -> str:
    """Return a line with the class names that were removed and added; "" for the same names, or if
    either list is empty."""
    if not before or not now or list(before) == list(now):
        return ""
    old, new = dict.fromkeys(before), dict.fromkeys(now)
    changes = {
        "without": [name for name in old if name not in new],
        "with": [name for name in new if name not in old],
    }
    parts = [f"{word} {_first_names(names)}" for word, names in changes.items() if names]
    return f"\n  class names: now {', '.join(parts) or 'in another order'}"


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(short_repr, names[:MAX_NAMES])) + more


def _fixed_values(config: ConfigDict) -> dict[str, Any]:
    """Return dotted keys and values, of the keys that may not change on resume."""
    return _as_json({k: v for k, v in flatten(config) if k not in MAY_CHANGE_ON_RESUME})


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy as it reads back from a file, with lists instead of tuples."""
    return json.loads(json.dumps(values, default=list))
