"""Describe the training images and their groups.

    python -m captioning.describe --config=configs/demo.py [--kind=image,group] [--shard=0/8]
        [--processes=4]

Every answer is on disk at once, and the same command continues where it stopped: what was answered
before for the same images, prompt, engine, model and decoding is kept. A kind whose name begins
with "group" describes several images with the same pseudo-label; every other kind a single image.

One process works on each GPU of this host (`--processes`, by default as many as the engine can
use). On a cluster, `--shard=i/n` describes every n-th image, and `python -m captioning.merge` joins
the parts when all are done; without it the parts are joined here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from captioning import gpu_processes
from captioning.engines import Engine, Identity, engine_module
from captioning.merge import LISTED, Merged, check_replaceable, merge_kind
from captioning.shards import WHOLE, Shard
from captioning.tasks import Tasks, check_kinds, make_tasks
from captioning.worker import ShardPlan, WorkerStats, work_through
from lattec_jax.data import datasets
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.runtime.cli import command, read_config
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import print_escaped


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `describe` did for one kind, in images."""

    written: int
    kept: int  # were there already
    failed: dict[str, str]  # image -> reason
    merged: Merged | None  # None where only a part of the set was asked for


def describe(
    config: ConfigDict,
    kinds: Sequence[str] | None = None,
    engine: Engine | None = None,
    shard: Shard = WHOLE,
) -> dict[str, Outcome]:
    """Write the descriptions that are missing, and merge them if the whole set is asked for.

    Args:
        config: a resolved configuration.
        kinds: keys of `config.descriptions.prompts`; None: all of them.
        engine: in the place of the one that the configuration names.
        shard: the part of the images.

    Raises:
        ConfigError: no such kind or engine.
        DataError: groups are wanted and there are no pseudo-labels, no image can be read, or
            nothing can be written.
        EngineError: the engine cannot be loaded or does not work.
    """
    kinds = check_kinds(config, kinds)
    identity = engine.identity if engine else engine_module(config).identity(config)
    outcomes = {}
    for kind, (tasks, part) in _plan(config, kinds, identity, shard).items():
        tally = WorkerStats()
        if part.wanted:
            engine = engine or engine_module(config).load(config)
            what = f"{kind} descriptions could be made"
            tally = work_through(part, engine, f"describing: {kind}", what)
        merged = merge_kind(config, tasks, identity) if shard == WHOLE else None
        outcomes[kind] = Outcome(tally.written, part.kept, tally.failed, merged)
    return outcomes


def _plan(
    config: ConfigDict, kinds: Sequence[str], identity: Identity, shard: Shard
) -> dict[str, tuple[Tasks, ShardPlan]]:
    """All that can be missing is looked for here, before the first, perhaps long, kind begins."""
    found = {}
    for kind, tasks in make_tasks(config, kinds, datasets.load(config), identity).items():
        path = descriptions_path(config, kind)
        check_replaceable(path)
        found[kind] = tasks, ShardPlan.of(path, tasks.tasks, shard)
    return found


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_list("kind", None, "Kinds to describe; not set: all.", flag_values=values)
    flags.DEFINE_string("shard", "0/1", "Part i of n: i/n.", flag_values=values)
    flags.DEFINE_integer(
        "processes",
        None,
        "Workers on this host; not set: one for each GPU.",
        flag_values=values,
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, values = read_config(argv, __doc__, define_flags)
    shard = Shard.parse(values.shard)
    kinds = check_kinds(config, values.kind)
    processes = values.processes
    if processes is None:
        processes = engine_module(config).processes(config)
    if processes < 1:
        raise ConfigError(f"--processes: expected 1 or more, found {processes}")
    if processes > 1:
        # Planned once here: mistakes show at once, and the workers find the images hashed.
        identity = engine_module(config).identity(config)
        plans = _plan(config, kinds, identity, shard).values()
        wanted = sum(len(part.wanted) for _, part in plans)
        if wanted:
            gpu_processes.run([part.path for _, part in plans], argv, shard, processes, wanted)
        if shard == WHOLE:
            for tasks, _ in plans:
                print_escaped(f"{tasks.kind}: {merge_kind(config, tasks, identity).report()}")
        return
    for kind, outcome in describe(config, kinds, None, shard).items():
        print(
            f"{kind}: {outcome.written} written, {outcome.kept} kept, {len(outcome.failed)} failed"
        )
        if outcome.merged:
            print_escaped(outcome.merged.report())
        else:
            for image, reason in list(outcome.failed.items())[:LISTED]:
                print_escaped(f"  failed: {image}: {reason}")


if __name__ == "__main__":
    command(main)
