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

from lattec_jax.data import datasets
from lattec_jax.data.datasets.dataset import fraction_count
from lattec_jax.data.downloads.sources import SOURCES
from lattec_jax.paper_tables.plan import (
    DESCRIBE,
    Job,
    Sweep,
    column,
    is_public,
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
    files: str  # what is downloaded; "": nothing
    download_bytes: int
    descriptions: int  # at most; those of earlier runs are not made again
    runs: int
    steps: int  # of all runs


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
        images = config.dataset.expected.train
        files, size = "", 0
        if sweep.downloads and is_public(sweep, dataset) and not _is_there(sweep, dataset):
            files, size = _missing_files(config.dataset.name)
        described = steps = 0
        for job in left:
            if job.module not in (DESCRIBE, TRAIN):
                continue
            own = load_config(tuple(a for a in job.arguments if a.startswith("--config")))
            count = fraction_count(images, own.dataset.train_fraction)
            if job.module == DESCRIBE:
                described += count * len(job.arguments[-1].split(","))
            else:
                batch_size = min(own.train.batch_size, count)
                steps += total_steps(own, make_method(own.method), count, batch_size)
        runs = sum(job.module == TRAIN for job in left)
        yield Needs(column(dataset), files, size, described, runs, steps)


def _is_there(sweep: Sweep, dataset: str) -> bool:
    try:
        datasets.read(sweep.config(dataset))
    except UserError:
        return False
    return True


def _missing_files(name: str) -> tuple[str, int]:
    source = SOURCES[name]
    if source.archive is None:
        return "images that a person has to get", 0
    file = source.archive.file
    size = f"{file.size / 1e9:,.1f} GB" if file.size else "size not known"
    return f"{file.name} ({size})", file.size


def plan_lines(sweep: Sweep, found: Sequence[Needs]) -> list[str]:
    """Return what the command is going to do, in words."""
    config = sweep.config(sweep.datasets[0])
    converted = Path(config.weights).is_dir()
    lines = [f"weights: {config.weights}{'' if converted else ', converted at first use'}"]
    for one in found:
        parts = [f"download {one.files}"] if one.files else []
        parts += [f"up to {one.descriptions:,} descriptions"] if one.descriptions else []
        parts += [f"{one.runs} runs, {one.steps:,} steps"] if one.runs else []
        lines.append(f"{one.name}: {'; '.join(parts) or 'all is there'}")
    described, steps = sum(one.descriptions for one in found), sum(one.steps for one in found)
    size, engine = sum(one.download_bytes for one in found), config.descriptions.engine
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
