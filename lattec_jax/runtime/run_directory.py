"""A work directory belongs to one run: who may use it, and what is in it. Imports no JAX.

One run at a time works in it. Its lock (flock) ends with the process that wrote it, however that
ends; where a run has several processes, the first of them holds it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.runtime.config import from_json, leaves, to_json
from lattec_jax.runtime.errors import ConfigError, differences
from lattec_jax.runtime.files import (
    PARTIAL,
    remove_abandoned,
    wait_until_visible,
    write_atomic,
    write_json,
)

CONFIG = "config.json"
INPUTS = "inputs.json"  # what the run was made of, by digests
RESULTS = "results.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
REPORT_DATA = "report_data.json"  # what the page shows beside the results and the log
CHECKPOINTS = "checkpoints"
MODEL = "model"  # the adapted CLIP, a checkpoint directory
CLASSIFIER = "classifier.safetensors"  # one vector per class
LOCK = "lock"

# How a run is computed and looked at, not what: its numbers are the same but for the order of
# summation, so it may go on with other values, on other devices.
COMPUTED = frozenset(
    {
        "compute.eval_batch_size",
        "compute.fsdp",
        "compute.remat",
        "profile",
        "image_cache.placement",
        "train.microbatch_size",
    }
)

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
log = logging.getLogger(__name__)
_held: dict[Path, int] = {}  # the directories that this process has locked, with descriptors


def check(workdir: Path, config: ConfigDict) -> None:
    """Refuse a work directory that is not this run's and not free. Writes nothing.

    Raises:
        ConfigError: it belongs to a run of another configuration (the message lists the keys that
            differ), holds foreign files, or another process works in it.
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
            f"{workdir} is not empty and no work directory (no {CONFIG} in it); choose another "
            "--workdir"
        )
    if (workdir / LOCK).exists() and workdir.resolve() not in _held:
        os.close(_lock(workdir, os.O_RDONLY, fcntl.LOCK_SH))


def check_inputs(workdir: Path, record: Mapping[str, Any]) -> None:
    """Refuse to go on with other data, weights or texts than the run began with.

    Raises:
        ConfigError: naming what differs.
    """
    if not (workdir / INPUTS).exists():
        return
    before = read_inputs(workdir)
    if listed := differences(before, json.loads(json.dumps(record))):
        raise ConfigError(
            f"the run in {workdir} began with other inputs; restore them to continue it, or choose "
            f"another --workdir. What differs:{listed}"
        )


def read_inputs(workdir: Path) -> dict[str, Any]:
    """What a run was made of.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    from lattec_jax.runtime import schemas

    advice = "restore the run's own file"
    return schemas.read(workdir / INPUTS, schemas.Inputs, ConfigError, advice)


def claim(workdir: Path, config: ConfigDict, record: Mapping[str, Any]) -> None:
    """Take a work directory for a run, or go on in it.

    Raises:
        ConfigError: see `check` and `check_inputs`; or it cannot be written.
    """
    check(workdir, config)
    check_inputs(workdir, record)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if workdir.resolve() not in _held:
            _held[workdir.resolve()] = _lock(workdir, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        remove_abandoned(workdir)
        # The configuration comes last: where it is, the inputs are there as well.
        if not (workdir / INPUTS).exists():
            write_json(workdir / INPUTS, record)
        if not (workdir / CONFIG).exists():
            write_atomic(workdir / CONFIG, to_json(config))
    except OSError as error:
        raise ConfigError(f"cannot write the work directory {workdir}: {error}") from error


def follow(workdir: Path, config: ConfigDict, record: Mapping[str, Any]) -> None:
    """Go along with the first process of a run, which has claimed the work directory.

    Raises:
        ConfigError: it was claimed with other inputs than this process has.
    """
    wait_until_visible(workdir / CONFIG)
    listed = _config_differences(from_json(workdir / CONFIG), config)
    if listed := listed + differences(read_inputs(workdir), json.loads(json.dumps(record))):
        raise ConfigError(
            f"the first process of the run in {workdir} has other inputs than this one; all need "
            f"the same command line, and the same weights and images. What differs:{listed}"
        )


def _lock(workdir: Path, mode: int, kind: int) -> int:
    """The descriptor of the locked file; the lock ends when it is closed. On a file system that
    has no locks, as Lustre may be mounted, it is not locked."""
    descriptor = os.open(workdir / LOCK, mode | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another process works in {workdir}; wait until it ends, or choose another --workdir"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        if kind == fcntl.LOCK_EX:
            log.warning(
                "the file system of %s has no locks (%s); see to it that no other process works "
                "there", workdir, error.strerror,
            )  # fmt: skip
    return descriptor


def _config_differences(before: ConfigDict, now: ConfigDict) -> str:
    values = _values(before), _values(now)
    keys = sorted(values[0].keys() | values[1].keys())
    return differences(*({key: own.get(key, "(absent)") for key in keys} for own in values))


def _values(config: ConfigDict) -> dict[str, Any]:
    """Return dotted keys and values as JSON stores them, of the keys that may not change."""
    return {
        key: json.loads(json.dumps(value, default=list))
        for key, value in leaves(config)
        if key not in COMPUTED
    }
