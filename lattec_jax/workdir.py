"""A work directory belongs to one run: who may use it, and what is in it. Imports no JAX."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lattec_jax.config import from_json, leaves, to_json
from lattec_jax.errors import ConfigError

CONFIG = "config.json"
RESULTS = "results.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"  # the adapted CLIP, a checkpoint directory
CLASSIFIER = "classifier.safetensors"  # one vector per class


def check(workdir: Path, config: ConfigDict) -> None:
    """Refuse a work directory that is not this run's and not free. Writes nothing.

    Raises:
        ConfigError: it belongs to a run of another configuration (the message lists the keys that
            differ) or holds foreign files.
    """
    path = workdir / CONFIG
    if path.exists():
        differing = _differences(from_json(path), config)
        if differing:
            listed = "".join(f"\n  {line}" for line in differing)
            raise ConfigError(
                f"{workdir} belongs to a run with another configuration; choose another --workdir, "
                f"or repeat that run's command to continue it. Differing keys:{listed}"
            )
    elif workdir.exists() and (
        not workdir.is_dir() or any(p.suffix != ".partial" for p in workdir.iterdir())
    ):
        raise ConfigError(
            f"{workdir} is not empty and no work directory (no {CONFIG} in it); choose another "
            "--workdir"
        )


def claim(workdir: Path, config: ConfigDict) -> None:
    """Take a work directory for a run, or go on in it.

    Raises:
        ConfigError: see `check`; or it cannot be written.
    """
    check(workdir, config)
    path = workdir / CONFIG
    if path.exists():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(to_json(config), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"cannot write the work directory {workdir}: {error}") from error


def _differences(theirs: ConfigDict, ours: ConfigDict) -> list[str]:
    before, now = _plain(theirs), _plain(ours)
    return [
        f"{key}: there {before.get(key, '(absent)')!r}, here {now.get(key, '(absent)')!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, "(absent)") != now.get(key, "(absent)")
    ]


def _plain(config: ConfigDict) -> dict[str, Any]:
    """Dotted names and values as JSON keeps them (no tuples)."""
    return {key: json.loads(json.dumps(value, default=list)) for key, value in leaves(config)}
