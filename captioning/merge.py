"""Join what the workers wrote into the file that training reads, and say what is in it.

    python -m captioning.merge --config=configs/eurosat.py [--kind=image,group]

`captioning.describe` does this by itself where it describes the whole set; after a cluster's
workers it is a command of its own. Only what answers the present configuration is taken: the same
images, prompts, engine, model and decoding. Nothing is deleted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from captioning.engines import Identity, engine_module
from captioning.shards import ShardWriter, recorded, shard_paths
from captioning.tasks import Task, Tasks, check_kinds, make_tasks
from lattec_jax.data import datasets
from lattec_jax.data.descriptions import Record, descriptions_path, records, to_line
from lattec_jax.runtime.cli import command, read_config
from lattec_jax.runtime.errors import DataError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.text import print_escaped

LISTED = 10  # failures that are printed


@dataclasses.dataclass(frozen=True)
class Merged:
    """What a merge found for one kind, in images."""

    path: Path
    texts: tuple[str, ...]
    failed: dict[str, str]  # image -> reason
    left_out: tuple[str, ...]  # no pseudo-label, because the image was unreadable
    note: str

    def report(self) -> str:
        """Counts, lengths, duplicates and failures, for a person."""
        words = [len(text.split()) for text in self.texts if text]
        repeated = Counter(text for text in self.texts if text)
        lines = [
            f"{len(words)} descriptions -> {self.path}",
            f"  empty: {len(self.texts) - len(words)}; failed: {len(self.failed)}; without a "
            f"pseudo-label (unreadable): {len(self.left_out)}",
        ]
        if self.note:
            lines.insert(1, f"  {self.note}")
        if words:
            least, median, most = np.percentile(words, [0, 50, 100])
            lines.append(f"  words: {least:.0f} to {most:.0f}, median {median:.0f}")
            text, count = repeated.most_common(1)[0]
            lines.append(
                f"  different texts: {len(repeated)}"
                + (f"; {count} times: {text[:80]!r}" if count > 1 else "")
            )
        for image, reason in list(self.failed.items())[:LISTED]:
            lines.append(f"  failed: {image}: {reason}")
        if len(self.failed) > LISTED:
            lines.append(f"  and {len(self.failed) - LISTED} more")
        return "\n".join(lines)


def merge(config: ConfigDict, kinds: Sequence[str] | None = None) -> dict[str, Merged]:
    """Write the merged file of each kind.

    Args:
        config: a resolved configuration.
        kinds: None: all.

    Raises:
        ConfigError: no such kind or engine.
        DataError: descriptions are missing, or a file of another maker would be overwritten.
    """
    kinds = check_kinds(config, kinds)
    identity = engine_module(config).identity(config)
    tasks = make_tasks(config, kinds, datasets.load(config), identity)
    return {kind: merge_kind(config, tasks[kind], identity) for kind in kinds}


def merge_kind(config: ConfigDict, tasks: Tasks, identity: Identity) -> Merged:
    """Write the merged file of one kind. Raises DataError, see `merge`."""
    path = descriptions_path(config, tasks.kind)
    check_replaceable(path)
    found = recorded(path)
    missing = [task for task in tasks.tasks if task.key not in found]
    if missing:
        raise DataError(_incomplete(path, tasks, missing, found, identity))
    taken = {task: found[task.key] for task in tasks.tasks}
    _keep_earlier(path, {task.key for task in taken})
    good = {task: record for task, record in taken.items() if not record.error}
    # Two ids may lie on the same image: a record carries the id of the one it was made for.
    lines = [to_line(task.record(identity, text=record.text)) for task, record in good.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, b"".join(lines))
    return Merged(
        path,
        tuple(record.text for record in good.values()),
        {task.image: record.error for task, record in taken.items() if record.error},
        tasks.left_out,
        tasks.tasks[0].note if tasks.tasks else "",
    )


def check_replaceable(path: Path) -> None:
    """Raise DataError where a merged file would replace one that other software made."""
    if path.exists() and not all(record.key for record in records(path)):
        raise DataError(
            f"{path} holds descriptions without keys, which this command did not make and would "
            "replace; move the file away, or train on it as it is"
        )


def _keep_earlier(path: Path, taken: set[str]) -> None:
    """Save what only the old merged file has, for example where no shards were copied with it."""
    if not path.exists():
        return
    elsewhere = {record.key for shard in shard_paths(path) for record in records(shard)}
    only_here = [r for r in records(path) if r.key not in elsewhere and r.key not in taken]
    if only_here:
        with ShardWriter(path.parent / "shards" / f"{path.stem}.earlier.jsonl") as writer:
            for record in only_here:
                writer.append(record)


def _incomplete(
    path: Path,
    tasks: Tasks,
    missing: Sequence[Task],
    found: Mapping[str, Record],
    identity: Identity,
) -> str:
    """What is missing, and what is there instead."""
    others = Counter(
        " | ".join((r.engine, r.model, r.decoding))
        for r in found.values()
        if (r.engine, r.model, r.decoding) != identity
    )
    instead = "".join(f"; {count} are of {source}" for source, count in others.most_common(3))
    return (
        f"{len(missing)} of {len(tasks.tasks)} {tasks.kind} descriptions are missing, the first of "
        f"{missing[0].image!r}; wanted are those of {' | '.join(identity)}, {len(found)} are in "
        f"{path.parent}{instead}. Finish them with python -m captioning.describe "
        f"--config=... --kind={tasks.kind}"
    )


def define_flags(values: flags.FlagValues) -> None:
    """The flags of the command."""
    flags.DEFINE_list("kind", None, "Kinds to merge; not set: all.", flag_values=values)


def main(argv: Sequence[str]) -> None:
    """The command."""
    config, values = read_config(argv, __doc__, define_flags)
    for kind, merged in merge(config, values.kind).items():
        print_escaped(f"{kind}: {merged.report()}")


if __name__ == "__main__":
    command(main)
