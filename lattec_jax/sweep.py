"""Run the experiments of the paper's tables and write our numbers beside the paper's.

    python -m lattec_jax.sweep --tables=1,2,3,4,5,figure6 --datasets=eurosat,dtd --seeds=0,1,2 \\
        --config.weights=weights/ViT-B-32

runs what is missing, one by one, and writes `tables.md` and `tables.html` to --out. The same
command continues after an interruption, and several at once share the work. --preset=NAME and
--config.key=value apply to all runs. Other modes run nothing:

    --mode=pseudo_labels  print the commands that make pseudo-labels, one per line
    --mode=descriptions   print the commands that make descriptions; run these second
    --mode=runs           print the commands of the runs; run these last
    --mode=tables         write the tables from the results so far
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from lattec_jax.paper_tables.cells import CollectedResults, make_sheet, read_results
from lattec_jax.paper_tables.plan import (
    DESCRIBE,
    PSEUDO_LABEL,
    Job,
    Sweep,
    choose_tables,
    commands,
    make_jobs,
)
from lattec_jax.paper_tables.runner import run_jobs, summarize
from lattec_jax.paper_tables.tables import TABLES, paper_datasets
from lattec_jax.paper_tables.write import facts, markdown, page
from lattec_jax.runtime.cli import command, read
from lattec_jax.runtime.config_file import DEFAULTS
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.runtime.files import write_atomic
from lattec_jax.runtime.preemption import terminating
from lattec_jax.runtime.text import print_escaped

PRINTED = {"pseudo_labels": PSEUDO_LABEL, "descriptions": DESCRIBE, "runs": None}


def define_sweep(values: flags.FlagValues, datasets: Sequence[str], out: str) -> None:
    """Define the flags of a sweep, with the default data sets and directory."""
    keys, names = ",".join(TABLES), ",".join(datasets)
    flags.DEFINE_list("tables", keys, "Which tables.", flag_values=values)
    flags.DEFINE_list("datasets", names, "Configurations: names or files.", flag_values=values)
    flags.DEFINE_list("seeds", "0,1,2", "Seeds of the runs.", flag_values=values)
    flags.DEFINE_string("preset", DEFAULTS["preset"], "Preset of all runs.", flag_values=values)
    flags.DEFINE_string("out", out, "Where runs and tables go.", flag_values=values)


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    define_sweep(values, paper_datasets(), "runs/sweep")
    flags.DEFINE_enum("mode", "run", ["run", *PRINTED, "tables"], "What to do.", flag_values=values)


def parse_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command line without its `--config.key=value`, and these.

    Raises:
        ConfigError: one has no value.
    """
    overrides = [a for a in argv[1:] if a.startswith(("--config.", "-config."))]
    if incomplete := [a for a in overrides if "=" not in a]:
        raise ConfigError(f"{incomplete[0]}: expected --config.key=value")
    return [a for a in argv if a not in overrides], overrides


def make_sweep(
    values: flags.FlagValues, overrides: Sequence[str], downloads: bool = False
) -> Sweep:
    """Return the sweep of a command's flags.

    Raises:
        ConfigError: an unknown table, or seeds that are not numbers.
    """
    for seed in values.seeds:
        if not (seed.isascii() and seed.isdigit() and int(seed) < 2**32):
            raise ConfigError(f"--seeds: expected whole numbers from 0 to 2^32 - 1, found {seed!r}")
    if not (values.tables and values.datasets and values.seeds):
        raise ConfigError("--tables, --datasets and --seeds: expected at least one each")
    return Sweep(
        choose_tables(values.tables),
        tuple(dict.fromkeys(values.datasets)),
        tuple(dict.fromkeys(map(int, values.seeds))),
        Path(values.out),
        tuple(overrides),
        values.preset,
        downloads,
    )


def write_tables(sweep: Sweep, found: CollectedResults) -> str:
    """Write `tables.md` and `tables.html` from the results so far and return the Markdown."""
    sheets = [make_sheet(sweep, table, found) for table in sweep.tables]
    known = facts(sweep, found)
    text = markdown(sheets, known)
    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
        write_atomic(sweep.out / "tables.md", text)
        write_atomic(sweep.out / "tables.html", page(sheets, known))
    except OSError as error:
        raise ConfigError(f"--out: cannot write {sweep.out}: {error.strerror}") from error
    return text


def finish(sweep: Sweep, jobs: Sequence[Job] | None) -> None:
    """Run the jobs, if any are given, and write and print the tables. Exit with status 1 if a job
    failed or the results of a run are damaged."""
    outcome = None
    if jobs is not None:
        with terminating():
            outcome = run_jobs(jobs, sweep.out)
    found = read_results(sweep)
    print(write_tables(sweep, found))
    print_escaped(
        f"tables in {sweep.out / 'tables.md'} and {sweep.out / 'tables.html'}", file=sys.stderr
    )
    if outcome is not None:
        print_escaped(summarize(outcome), file=sys.stderr)
    if found.damaged or (outcome is not None and outcome.failed):
        sys.exit(1)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    rest, overrides = parse_overrides(argv)
    values, _ = read(rest, __doc__, define_flags)
    sweep = make_sweep(values, overrides)
    jobs = make_jobs(sweep)
    if values.mode in PRINTED:
        for line in commands(jobs, PRINTED[values.mode]):
            print(line)
        return
    finish(sweep, jobs if values.mode == "run" else None)


if __name__ == "__main__":
    command(main)
