"""Adapt a CLIP to a domain.

    python -m lattec_jax.train --config=configs/demo.py [--workdir=DIR] [--config.key=value ...]

The work directory (default: `runs/<dataset>-<method>-s<seed>`) belongs to one run: the same command
continues it after any interruption. SIGTERM saves the current step; the exit status is then 75.
Missing image caches and pseudo-labels are made; missing descriptions by a language model are an
error that names the command that makes them.

`--distributed` makes the processes of a job train together (`lattec_jax/runtime/distributed.py`).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict

from lattec_jax.runtime.cli import (
    command,
    config_arguments,
    define_distributed,
    define_workdir,
    read_config,
)
from lattec_jax.runtime.config import default_workdir
from lattec_jax.runtime.preemption import terminating

if TYPE_CHECKING:
    from lattec_jax.data.descriptions import Sources


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    define_workdir(values, "Work directory of the run; default: runs/<dataset>-<method>-s<seed>.")
    define_distributed(values)


def describe(
    config: ConfigDict,
    kinds: tuple[str, ...],
    sources: Sources | None = None,
    function: tuple[Any, str] | None = None,
) -> None:
    """Write the missing descriptions with an engine that looks at pixels only, or with a function
    of images (and its identity) that `lattec_jax.adapt` was given.

    This is the only import of `captioning` in `lattec_jax`; no PyTorch comes with such an engine.
    """
    from captioning.describe import describe
    from captioning.engines import Identity
    from captioning.engines.function import FunctionEngine

    engine = None
    if function is not None:
        engine = FunctionEngine(function[0], Identity(config.descriptions.engine, function[1], ""))
    describe(config, kinds, engine, sources=sources)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    config, values = read_config(argv, __doc__, define_flags)
    directory = Path(values.workdir) if values.workdir else default_workdir(config)
    arguments = shlex.join(config_arguments(argv[1:]))
    with terminating():
        from lattec_jax import train_loop
        from lattec_jax.runtime import compilation_cache, distributed

        distributed.initialize(values.distributed)
        compilation_cache.enable()
        train_loop.train(config, directory, arguments, describe)


if __name__ == "__main__":
    command(main)
