"""Reproduce the paper's tables from nothing: download, convert, describe, train, compare.

    export LATTECLIP_DATA_DIR=/data
    python -m lattec_jax.reproduce --datasets=eurosat,dtd --tables=1,3

Prints what is missing and what it will take, asks nothing, and runs it: the public files of the
data sets, the paper's weights (ViT-B-32 of LAION-2B), pseudo-labels, descriptions by
config.descriptions.engine, all runs, and the tables with the paper's numbers in --out. The same
command continues after an interruption, and several at once share the work. --preset=NAME and
--config.key=value apply to all runs, such as --config.compute.dtype=bfloat16 on a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from lattec_jax.data import datasets
from lattec_jax.data.datasets.dataset import fraction_count
from lattec_jax.data.downloads.sources import SOURCES, RemoteFile, source_of
from lattec_jax.download import missing_files
from lattec_jax.paper_tables.plan import (
    DESCRIBE,
    Job,
    Sweep,
    column,
    load_config,
    make_jobs,
)
from lattec_jax.paper_tables.tables import MODEL, PRETRAINED, TRAIN
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.errors import UserError
from lattec_jax.runtime.progress import duration
from lattec_jax.runtime.text import print_escaped
from lattec_jax.sweep import define_sweep, finish, make_sweep, parse_overrides

# benchmarks/README.md, "One H200": steps of 512 images, ViT-B-32 in bfloat16, a second.
STEPS_PER_SECOND = 1000 / 59


@dataclasses.dataclass(frozen=True)
class Needs:
    """What is left to do for one data set."""

    name: str
    files: tuple[RemoteFile, ...]  # that are downloaded
    descriptions: int  # at most; those of earlier runs are not made again
    runs: int
    steps: int | None  # of all runs; None: the number of images is not known
    by_hand: bool  # whether a person has to get the images


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    public = [name for name, source in SOURCES.items() if source.archive is not None]
    define_sweep(values, public, "runs/reproduce")


def needs(sweep: Sweep, jobs: Sequence[Job]) -> Iterator[Needs]:
    """Yield what is left to do, data set by data set."""
    from lattec_jax.methods import make_method
    from lattec_jax.train_run import total_steps

    for dataset in sweep.datasets:
        config = sweep.config(dataset)
        left = [job for job in jobs if job.name.startswith(f"{column(dataset)}/") and not job.done]
        images = config.dataset.expected.train or _count(config)
        files, source = missing_files(config), source_of(config.dataset)
        by_hand = bool(files) and source is not None and source.archive is None
        described = steps = 0
        for job in left:
            if job.module not in (DESCRIBE, TRAIN) or not images:
                continue
            own = load_config(tuple(a for a in job.arguments if a.startswith("--config")))
            count = fraction_count(images, own.dataset.train_fraction)
            if job.module == DESCRIBE:
                described += count * len(job.arguments[-1].split(","))
            else:
                batch_size = min(own.train.batch_size, count)
                steps += total_steps(own, make_method(own.method), count, batch_size)
        runs = sum(job.module == TRAIN for job in left)
        yield Needs(
            column(dataset), tuple(files), described, runs, steps if images else None, by_hand
        )


def _count(config: ConfigDict) -> int:
    """Return the number of training images, or 0 where the data set is not there."""
    try:
        return len(datasets.read(config).train.ids)
    except UserError:
        return 0


def _size(file: RemoteFile) -> str:
    if file.git_blob:
        return file.name
    return f"{file.name} ({f'{file.size / 1e9:,.1f} GB' if file.size else 'size not known'})"


def plan_lines(sweep: Sweep, found: Sequence[Needs]) -> list[str]:
    """Return what the command is going to do, in words."""
    config = sweep.config(sweep.datasets[0])
    converted = Path(config.weights).is_dir()
    lines = [f"weights: {config.weights}{'' if converted else ', converted once, at first use'}"]
    for one in found:
        parts = [f"download {' and '.join(map(_size, one.files))}"] if one.files else []
        parts += ["images that a person has to get"] if one.by_hand else []
        parts += [f"up to {one.descriptions:,} descriptions"] if one.descriptions else []
        of_runs = "unknown number of" if one.steps is None else f"{one.steps:,}"
        parts += [f"{one.runs} runs, {of_runs} steps"] if one.runs else []
        lines.append(f"{one.name}: {'; '.join(parts) or 'all is there'}")
    described = sum(one.descriptions for one in found)
    steps = sum(one.steps or 0 for one in found)
    size = sum(file.size for one in found for file in one.files)
    engine = config.descriptions.engine
    total = []
    if size:
        total.append(f"{size / 1e9:,.1f} GB to download, and as much again on the disk")
    if described:
        rate = " (rate on a GPU: not yet measured)" if engine == "llava" else ""
        total.append(f"{described:,} descriptions by {engine}{rate}")
    total.append(
        f"{steps:,} steps, which take {duration(steps / STEPS_PER_SECOND)} on one H200 (512 "
        "images, ViT-B-32, bfloat16, measured on 2026-11-26)"
    )
    return [*lines, f"in all: {'; '.join(total)}"]


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    rest, overrides = parse_overrides(argv)
    values, _ = read(rest, __doc__, define_flags)
    if not any(a.lstrip("-").startswith("config.weights=") for a in overrides):
        overrides = [f"--config.weights={MODEL}:{PRETRAINED}", *overrides]
    sweep = make_sweep(values, overrides, downloads=True)
    jobs = make_jobs(sweep)
    for line in plan_lines(sweep, list(needs(sweep, jobs))):
        print_escaped(line)
    finish(sweep, jobs)


if __name__ == "__main__":
    command(main)
