"""Merge the workers' files into the file that training reads, and print statistics.

    python -m captioning.merge --config=configs/eurosat.py [--kind=image,group]

`captioning.describe` without `--shard` already merges; use this command after the shards of a
cluster. Only descriptions for the given configuration are merged: the same images, prompts, engine,
model and decoding. Nothing is deleted.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from captioning.engines import Identity, engine_module
from captioning.shards import ShardWriter, read_records, shard_paths
from captioning.tasks import Tasks, check_kinds, make_tasks
from captioning.worker import list_failures
from lattec_jax.data import datasets
from lattec_jax.data.descriptions import descriptions_path, records, to_line
from lattec_jax.runtime.cli import command, config_arguments, print_next, read_config
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.text import print_escaped


@dataclasses.dataclass(frozen=True)
class MergeResult:
    """The merged descriptions of one kind."""

    path: Path
    texts: tuple[str, ...]
    failed: dict[str, str]  # image -> reason
    unlabeled: tuple[str, ...]  # images without a pseudo-label, because they were unreadable
    note: str

    def report(self) -> str:
        """Return counts, lengths, duplicates and failures as text."""
        words = [len(text.split()) for text in self.texts if text]
        repeated = Counter(text for text in self.texts if text)
        lines = [
            f"{len(words)} descriptions -> {self.path}",
            f"  empty: {len(self.texts) - len(words)}; failed: {len(self.failed)}; without a "
            f"pseudo-label (unreadable): {len(self.unlabeled)}",
        ]
        if self.note:
            lines.insert(1, f"  {self.note}")
        if words:
            shortest, median, longest = np.percentile(words, [0, 50, 100])
            lines.append(f"  words: {shortest:.0f} to {longest:.0f}, median {median:.0f}")
            text, count = repeated.most_common(1)[0]
            lines.append(
                f"  different texts: {len(repeated)}"
                + (f"; {count} times: {text[:80]!r}" if count > 1 else "")
            )
        return "\n".join(lines) + list_failures(self.failed)


def merge(config: ConfigDict, kinds: Sequence[str] | None = None) -> dict[str, MergeResult]:
    """Write the merged file of each kind; None: of all.

    Raises:
        ConfigError: no such kind or engine.
        DataError: descriptions are missing, or a file of other software would be overwritten.
    """
    kinds = check_kinds(config, kinds)
    identity = engine_module(config).identity(config)
    tasks = make_tasks(config, kinds, datasets.load(config), identity)
    return {kind: merge_kind(config, tasks[kind], identity) for kind in kinds}


def merge_kind(config: ConfigDict, tasks: Tasks, identity: Identity) -> MergeResult:
    """Write the merged file of one kind. Raises DataError, see `merge`."""
    path = descriptions_path(config, tasks.kind)
    check_replaceable(path)
    found = read_records(path)
    missing = [task for task in tasks.tasks if task.key not in found]
    if missing:
        others = Counter(
            " | ".join((r.engine, r.model, r.decoding))
            for r in found.values()
            if (r.engine, r.model, r.decoding) != identity
        )
        instead = "".join(f"; {count} are from {source}" for source, count in others.most_common(3))
        raise DataError(
            f"{len(missing)} of {len(tasks.tasks)} {tasks.kind} descriptions are missing, the "
            f"first of {missing[0].image!r}; expected descriptions from {' | '.join(identity)}, "
            f"found {len(found)} in {path.parent}{instead}. Finish them with "
            f"python -m captioning.describe --config=... --kind={tasks.kind}"
        )
    record_of = {task: found[task.key] for task in tasks.tasks}
    _save_unsharded(path, {task.key for task in tasks.tasks})
    described = {task: record for task, record in record_of.items() if not record.error}
    # Two images with the same content share a record, which has the id of one of them.
    lines = [to_line(task.record(identity, text=r.text)) for task, r in described.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, b"".join(lines))
    return MergeResult(
        path,
        tuple(record.text for record in described.values()),
        {task.image: record.error for task, record in record_of.items() if record.error},
        tasks.unlabeled,
        tasks.tasks[0].note if tasks.tasks else "",
    )


def check_replaceable(path: Path) -> None:
    """Raise DataError if the merged file would replace one that other software wrote."""
    if path.exists() and not all(record.key for record in records(path)):
        raise DataError(
            f"{path} contains descriptions without keys, which this command did not write and "
            "would replace; move the file away, or train on it as it is"
        )


def _save_unsharded(path: Path, merged_keys: set[str]) -> None:
    """Save records that only the old merged file has, for example if only it was copied."""
    if not path.exists():
        return
    saved = merged_keys | {record.key for shard in shard_paths(path) for record in records(shard)}
    unsaved = [record for record in records(path) if record.key not in saved]
    if unsaved:
        with ShardWriter(path.parent / "shards" / f"{path.stem}.earlier.jsonl") as writer:
            for record in unsaved:
                writer.append(record)


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_list("kind", None, "Kinds to merge; default: all.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    config, values = read_config(argv, __doc__, define_flags)
    for kind, merged in merge(config, values.kind).items():
        print_escaped(f"{kind}: {merged.report()}")
    print_next(f"python -m lattec_jax.train {shlex.join(config_arguments(argv[1:]))}")


if __name__ == "__main__":
    command(main)
