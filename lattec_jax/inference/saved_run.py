"""The work directory of a finished run: show its table, and copy what a classifier needs of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lattec_jax.runtime import run_directory
from lattec_jax.runtime.errors import ConfigError, DataError
from lattec_jax.runtime.files import partial_directory, remove_abandoned
from lattec_jax.runtime.safe_read import read_json
from lattec_jax.runtime.text import print_escaped

# Copied besides the adapted CLIP: all but checkpoints and events.
_FILES = (
    run_directory.CLASSIFIER, run_directory.CONFIG, run_directory.INPUTS, run_directory.RESULTS,
    run_directory.REPORT, run_directory.REPORT_DATA, run_directory.METRICS,
)  # fmt: skip


def show_report(directory: Path) -> Path:
    """Print the table and the verdict of a run, and return the path of its report page.

    Raises:
        DataError: the results or the page are missing or damaged.
    """
    path, page = directory / run_directory.RESULTS, directory / run_directory.REPORT
    try:
        content = read_json(path)
        lines = [content["table"], content["health"]["verdict"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected the results of a finished run, found none that can be read "
            f"({error}); load the work directory of the run"
        ) from error
    if not page.exists():
        raise DataError(
            f"no {page.name} in {directory}; python -m lattec_jax.report --workdir={directory} "
            "writes it"
        )
    print_escaped("\n".join([*lines, f"report in {page}"]))
    return page


def copy_run(source: Path, target: Path) -> None:
    """Copy a finished run without its checkpoints, in one step.

    Raises:
        ConfigError: the target exists and is not an empty directory, or cannot be written.
    """
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{target} exists already; choose another directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, target.name)
        with partial_directory(target) as scratch:
            new = scratch / "new"
            shutil.copytree(source / run_directory.MODEL, new / run_directory.MODEL)
            for name in _FILES:
                if (source / name).exists():
                    shutil.copy2(source / name, new / name)
            os.replace(new, target)  # which may be an empty directory
    except OSError as error:
        raise ConfigError(f"cannot save the classifier in {target}: {error}") from error
