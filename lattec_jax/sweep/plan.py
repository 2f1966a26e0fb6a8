"""Which jobs the tables take: preparations, then one run for each row, data set and seed."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax import workdir
from lattec_jax.config import did_you_mean, parse
from lattec_jax.errors import ConfigError
from lattec_jax.sweep.tables import CLASSIFY, TABLES, Row, Table

PSEUDO_LABEL = "lattec_jax.pseudo_label"
DESCRIBE = "captioning.describe"
# Engines that look at pixels only answer no question about classes.
NO_CLASSES = ("pixels",)


@dataclasses.dataclass(frozen=True)
class Job:
    """One command, which leaves `product` behind when it has ended well.

    Attributes:
        name: unique in a sweep, such as "eurosat/latteclip-s0".
        module: of the command, `python -m <module>`.
        arguments: of the command.
        product: `results.json` of a run, the mark of a preparation.
        needs: names of the preparations that must have ended well before.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    product: Path
    needs: tuple[str, ...] = ()

    @property
    def prepares(self) -> bool:
        """Whether it makes files that several runs read."""
        return self.module in (PSEUDO_LABEL, DESCRIBE)

    @property
    def done(self) -> bool:
        """Whether it has ended well, in this sweep or in an earlier one."""
        return self.product.exists()

    @property
    def command(self) -> str:
        """As one line for a shell; a preparation marks its end."""
        line = shlex.join(["python", "-m", self.module, *self.arguments])
        if self.prepares:
            mark = shlex.quote(str(self.product))
            line += f" && mkdir -p {shlex.quote(str(self.product.parent))} && touch {mark}"
        return line


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is asked for."""

    tables: tuple[Table, ...]
    datasets: tuple[str, ...]  # names of configurations or paths to them
    seeds: tuple[int, ...]
    out: Path
    overrides: tuple[str, ...] = ()  # `--config.key=value` for all runs

    def config_file(self, dataset: str) -> str:
        """The configuration of a data set."""
        return dataset if dataset.endswith(".py") else f"configs/{dataset}.py"

    def arguments(self, dataset: str, overrides: Sequence[str]) -> tuple[str, ...]:
        """A command's `--config...` arguments; the row's own come last and win."""
        return (f"--config={self.config_file(dataset)}", *self.overrides, *overrides)

    def config(self, dataset: str, overrides: Sequence[str] = ()) -> ConfigDict:
        """The resolved configuration of a data set."""
        return parse(["sweep", *self.arguments(dataset, overrides)])[0]

    def workdir(self, dataset: str, row: Row, seed: int) -> Path:
        """Where a run of a row goes."""
        return self.out / Path(dataset).stem / f"{row.name}-s{seed}"

    def row_seeds(self, row: Row) -> tuple[int, ...]:
        """The seeds that a row is run with: the first where all give the same."""
        return self.seeds if row.seeded else self.seeds[:1]


def choose_tables(keys: Sequence[str]) -> tuple[Table, ...]:
    """The tables of these keys.

    Raises:
        ConfigError: there is no such table.
    """
    for key in keys:
        if key not in TABLES:
            raise ConfigError(
                f"--tables: expected some of {','.join(TABLES)}, found {key!r}. "
                f"{did_you_mean(key, TABLES)}"
            )
    return tuple(TABLES[key] for key in dict.fromkeys(keys))


def make_jobs(sweep: Sweep) -> list[Job]:
    """All jobs in the order in which they are run; each is there once.

    Raises:
        ConfigError: a configuration does not exist, or a work directory holds the run of another
            configuration.
    """
    jobs: dict[str, Job] = {}
    for dataset in sweep.datasets:
        config = sweep.config(dataset)
        rows = {row.name: row for table in sweep.tables for row in table.rows}
        runs: dict[str, Job] = {}
        for row in rows.values():
            if row.module == CLASSIFY and config.descriptions.engine in NO_CLASSES:
                continue
            preparations = _preparations(sweep, dataset, row)
            jobs |= {job.name: job for job in preparations}
            needs = tuple(job.name for job in preparations)
            for seed in sweep.row_seeds(row):
                job = _run(sweep, dataset, row, seed, needs)
                runs[job.name] = job
        jobs |= runs
    return list(jobs.values())


def commands(jobs: Sequence[Job], preparations: bool) -> list[str]:
    """The missing preparations, or the missing runs, as lines for a shell in any order.

    A preparation begins with what it needs itself, so that lines may run at the same time.
    """
    by_name = {job.name: job for job in jobs}
    lines = []
    for job in jobs:
        if not job.done and job.prepares == preparations:
            before = [by_name[name] for name in job.needs] if preparations else []
            lines.append(" && ".join([j.command for j in before if not j.done] + [job.command]))
    return lines


def _run(sweep: Sweep, dataset: str, row: Row, seed: int, needs: tuple[str, ...]) -> Job:
    overrides = (*row.overrides, f"--config.seed={seed}")
    directory = sweep.workdir(dataset, row, seed)
    if (directory / workdir.CONFIG).exists():
        config = sweep.config(dataset, overrides)
        if row.module == CLASSIFY:  # it records itself as a method of its own
            config = config.copy_and_resolve_references().unlock()
            config.method.name = row.name
        workdir.check(directory, config)
    arguments = (*sweep.arguments(dataset, overrides), f"--workdir={directory}")
    name = f"{directory.parent.name}/{directory.name}"
    return Job(name, row.module, arguments, directory / workdir.RESULTS, needs)


def _preparations(sweep: Sweep, dataset: str, row: Row) -> list[Job]:
    """Stores and pseudo-labels, and descriptions, before any run reads them: two workers that made
    them at the same time would do the work twice."""
    if row.module == CLASSIFY:
        return []
    of_data = tuple(a for a in row.overrides if a.startswith("--config.dataset."))
    of_texts = tuple(a for a in row.overrides if a.startswith("--config.descriptions."))
    folder = sweep.out / Path(dataset).stem / "prepared"
    share = "-".join(a.partition("=")[2] for a in of_data)
    name = f"pseudo-labels-{share}" if share else "pseudo-labels"
    labels = _preparation(folder, name, PSEUDO_LABEL, sweep.arguments(dataset, of_data))
    found = [labels]
    for texts in ((), of_texts)[: 1 + bool(of_texts)] if row.describes else ():
        # Other groups share the descriptions of single images with the usual ones.
        kinds = "group" if texts else "image,group"
        name = "-".join(filter(None, ["descriptions", share]))
        for argument in texts:
            name += "-" + argument.rpartition(".")[2].replace("=", "-")
        arguments = (*sweep.arguments(dataset, (*of_data, *texts)), f"--kind={kinds}")
        found.append(_preparation(folder, name, DESCRIBE, arguments, (labels.name,)))
    return found


def _preparation(
    folder: Path, name: str, module: str, arguments: tuple[str, ...], needs: tuple[str, ...] = ()
) -> Job:
    return Job(f"{folder.parent.name}/{name}", module, arguments, folder / name, needs)
