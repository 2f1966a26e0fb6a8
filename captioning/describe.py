"""Describe the training images, and groups of them.

    python -m captioning.describe --config=configs/demo.py [--kind=image,group] [--shard=0/8]
        [--processes=4]

Every description is stored at once, and the same command continues after an interruption:
descriptions for the same images, prompt, engine, model and decoding are reused. A kind whose name
begins with "group" describes several images with the same pseudo-label; every other kind describes
single images.

One process runs on each GPU of this host (`--processes`; by default the engine decides). On a
cluster, `--shard=i/n` describes every n-th image, and `python -m captioning.merge` merges all
finished shards; without `--shard` this command merges.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from captioning.engines import Engine, Identity, engine_module
from captioning.launcher import launch_workers
from captioning.merge import MergeResult, check_replaceable, merge_kind
from captioning.shards import UNSHARDED, Shard
from captioning.tasks import Tasks, check_kinds, make_tasks
from captioning.worker import ShardPlan, WorkerStats, describe_shard, list_failures
from lattec_jax.data import datasets
from lattec_jax.data.descriptions import Sources, descriptions_path
from lattec_jax.runtime.cli import command, config_arguments, print_next, read_config
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.text import print_escaped


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was done for one kind."""

    stats: WorkerStats
    merged: MergeResult | None  # None for a shard


def describe(
    config: ConfigDict,
    kinds: Sequence[str] | None = None,
    engine: Engine | None = None,
    shard: Shard = UNSHARDED,
    sources: Sources | None = None,
) -> dict[str, Outcome]:
    """Write the missing descriptions, and merge them unless only a shard is described.

    Args:
        kinds: keys of `config.descriptions.prompts`; None: all of them.
        engine: replaces the configured one.
        sources: the inputs, if the caller has read them already.

    Raises:
        ConfigError: no such kind or engine.
        DataError: pseudo-labels are needed and there are none, no image can be read, or the file
            cannot be written.
        EngineError: the engine cannot be loaded or does not work.
    """
    kinds = check_kinds(config, kinds)
    identity = engine.identity if engine else engine_module(config).identity(config)

    @functools.cache
    def load() -> Engine:
        return engine or engine_module(config).load(config)

    outcomes = {}
    for kind, (tasks, plan) in _plan(config, kinds, identity, shard, sources).items():
        goal = f"{kind} descriptions could be made"
        stats = describe_shard(plan, load, f"describing: {kind}", goal)
        merged = merge_kind(config, tasks, identity) if shard == UNSHARDED else None
        outcomes[kind] = Outcome(stats, merged)
    return outcomes


def _plan(
    config: ConfigDict,
    kinds: Sequence[str],
    identity: Identity,
    shard: Shard,
    sources: Sources | None = None,
) -> dict[str, tuple[Tasks, ShardPlan]]:
    """Plan all kinds, so that missing inputs are reported before the first kind takes hours."""
    plans = {}
    dataset = sources.dataset if sources else datasets.load(config)
    for kind, tasks in make_tasks(config, kinds, dataset, identity, sources).items():
        path = descriptions_path(config, kind)
        check_replaceable(path)
        plans[kind] = tasks, ShardPlan.make(path, tasks.tasks, shard)
    return plans


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_list("kind", None, "Kinds to describe; default: all.", flag_values=values)
    flags.DEFINE_string("shard", "0/1", "Shard i of n: i/n.", flag_values=values)
    flags.DEFINE_integer(
        "processes",
        None,
        "Worker processes on this host; default: one per GPU.",
        flag_values=values,
    )


def main(argv: Sequence[str]) -> None:
    module = "lattec_jax.train"
    if run(argv) != UNSHARDED:
        module = "captioning.merge"
        print("when all shards are described:")
    print_next(f"python -m {module} {shlex.join(config_arguments(argv[1:]))}")


def run(argv: Sequence[str]) -> Shard:
    """Do what the command line asks for, and return its shard; without the advice on what to do
    next."""
    config, values = read_config(argv, __doc__, define_flags)
    shard = Shard.parse(values.shard)
    kinds = check_kinds(config, values.kind)
    processes = values.processes
    if processes is None:
        processes = engine_module(config).processes(config)
    if processes < 1:
        raise ConfigError(f"--processes: expected 1 or more, found {processes}")
    if processes > 1:
        # Planned here too: mistakes are reported at once, and the workers find the images hashed.
        identity = engine_module(config).identity(config)
        plans = _plan(config, kinds, identity, shard).values()
        num_pending = sum(len(plan.pending) for _, plan in plans)
        if num_pending:
            paths = [plan.merged_path for _, plan in plans]
            launch_workers(paths, argv, shard, processes, num_pending)
        if shard == UNSHARDED:
            for tasks, _ in plans:
                print_escaped(f"{tasks.kind}: {merge_kind(config, tasks, identity).report()}")
        return shard
    for kind, outcome in describe(config, kinds, None, shard).items():
        stats = outcome.stats
        counts = f"{stats.written} written, {stats.reused} reused, {len(stats.failed)} failed"
        details = "\n" + outcome.merged.report() if outcome.merged else list_failures(stats.failed)
        print_escaped(f"{kind}: {counts}{details}")
    return shard


if __name__ == "__main__":
    command(main)
