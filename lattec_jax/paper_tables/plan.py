"""Which jobs the tables take: preparations, then one run for each row, data set and seed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.paper_tables.tables import CLASSIFY, TABLES, Row, Table
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import did_you_mean, leaves, parse
from lattec_jax.runtime.errors import ConfigError

PSEUDO_LABEL = "lattec_jax.pseudo_label"
DESCRIBE = "captioning.describe"
NO_CLASSES = ("pixels",)  # engines that answer no question about classes
# What the row "latteclip" stands for, which most tables compare with.
_METHOD = {
    "dataset.train_fraction": 1,
    "descriptions.correct_per_group": None,
    "descriptions.group_size": 4,
    "descriptions.shuffle": False,
    "method.labels": ("zero_shot", "current"),
    "method.mixer": True,
    "method.texts": ("class", "image", "group"),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One command, which leaves `product` behind when it has ended well.

    Attributes:
        name: unique in a sweep, such as "eurosat/latteclip-s0".
        module: of the command, `python -m <module>`.
        arguments: of the command.
        product: `results.json` of a run, the mark of a preparation.
        needs: names of the preparations that must have ended well before.
        made: what a preparation makes, where its path is known.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    product: Path
    needs: tuple[str, ...] = ()
    made: tuple[Path, ...] = ()

    @property
    def prepares(self) -> bool:
        """Whether it makes files that several runs read."""
        return self.module in (PSEUDO_LABEL, DESCRIBE)

    @property
    def done(self) -> bool:
        """Whether it has ended well, in this sweep or in an earlier one."""
        return self.product.exists() and all(path.exists() for path in self.made)

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
    """What is asked for.

    Raises:
        ConfigError: two data sets would have the same column, or an override is a row's own.
    """

    tables: tuple[Table, ...]
    datasets: tuple[str, ...]  # names of configurations or paths to them
    seeds: tuple[int, ...]
    out: Path
    overrides: tuple[str, ...] = ()  # `--config.key=value` for all runs

    def __post_init__(self) -> None:
        stem, count = Counter(map(column, self.datasets)).most_common(1)[0]
        if count > 1:
            raise ConfigError(
                f"--datasets: {count} configurations are called {stem!r}; name each once, or rename"
            )
        for override in self.overrides:
            key = _key(override)
            if key in _keys_of_rows():
                raise ConfigError(
                    f"{override}: the rows of the tables set config.{key} themselves; leave it out"
                )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all tables, each run once."""
        return tuple({row.name: row for table in self.tables for row in table.rows}.values())

    def arguments(self, dataset: str, overrides: Sequence[str]) -> tuple[str, ...]:
        """A command's `--config...` arguments."""
        file = dataset if dataset.endswith(".py") else f"configs/{dataset}.py"
        return (f"--config={file}", *self.overrides, *overrides)

    def config(self, dataset: str, overrides: Sequence[str] = ()) -> ConfigDict:
        """The resolved configuration of a data set."""
        return resolved_config(self.arguments(dataset, overrides))

    def workdir(self, dataset: str, row: Row, seed: int) -> Path:
        """Where a run of a row goes."""
        return self.out / column(dataset) / f"{row.name}-s{seed}"

    def row_seeds(self, row: Row) -> tuple[int, ...]:
        """The seeds that a row is run with: the first where all give the same."""
        return self.seeds if row.seeded else self.seeds[:1]


@functools.cache
def resolved_config(arguments: tuple[str, ...]) -> ConfigDict:
    """The resolved configuration, locked, of a command's arguments; the tables ask often."""
    return parse(["sweep", *arguments])[0]


def column(dataset: str) -> str:
    """The name of a data set in tables and directories."""
    return Path(dataset).stem


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
        ConfigError: a configuration does not exist or is not the method as the tables take it, or
            a work directory holds the run of another configuration.
    """
    jobs: dict[str, Job] = {}
    for dataset in sweep.datasets:
        _check_method(sweep, dataset)
        runs: dict[str, Job] = {}
        for row in sweep.rows:
            if not runs_here(sweep, dataset, row):
                continue
            preparations = _preparations(sweep, dataset, row)
            jobs |= {job.name: job for job in preparations}
            needs = tuple(job.name for job in preparations)
            for seed in sweep.row_seeds(row):
                job = _run(sweep, dataset, row, seed, needs)
                runs[job.name] = job
        jobs |= runs
    return list(jobs.values())


def runs_here(sweep: Sweep, dataset: str, row: Row) -> bool:
    """Whether a row can be run on a data set: some engines cannot name classes."""
    if row.module != CLASSIFY:
        return True
    return sweep.config(dataset).descriptions.engine not in NO_CLASSES


def commands(jobs: Sequence[Job], module: str | None) -> list[str]:
    """The missing preparations of a module, or (None) the missing runs, one a line in any order."""
    wanted = [job for job in jobs if (job.module == module if module else not job.prepares)]
    return [job.command for job in wanted if not job.done]


def _key(override: str) -> str:
    """The key of `--config.key=value`."""
    return override.lstrip("-").partition("=")[0].removeprefix("config.")


def _keys_of_rows() -> set[str]:
    """What the tables vary, or need as it is."""
    rows = (row for table in TABLES.values() for row in table.rows)
    keys = {_key(override) for row in rows for override in row.overrides}
    return keys | _METHOD.keys() | {"seed", "dataset.name"}


def _check_method(sweep: Sweep, dataset: str) -> None:
    """Refuse a configuration whose plain run would not be what the tables call LatteCLIP."""
    config = sweep.config(dataset)
    if not config.dataset.name:
        raise ConfigError(f"--datasets: the configuration {dataset} names no data set")
    found = dict(leaves(config))
    for key, expected in _METHOD.items():
        if found[key] != expected:
            raise ConfigError(
                f"--datasets: the tables expect config.{key}={expected!r}, found {found[key]!r} in "
                f"the configuration {dataset}"
            )


def _run(sweep: Sweep, dataset: str, row: Row, seed: int, needs: tuple[str, ...]) -> Job:
    overrides = (*row.overrides, f"--config.seed={seed}")
    directory = sweep.workdir(dataset, row, seed)
    if (directory / run_directory.CONFIG).exists():
        config = sweep.config(dataset, overrides)
        if row.module == CLASSIFY:  # it records itself as a method of its own
            config = config.copy_and_resolve_references().unlock()
            config.method.name = row.name
        run_directory.check_available(directory, config)
    arguments = (*sweep.arguments(dataset, overrides), f"--workdir={directory}")
    name = f"{directory.parent.name}/{directory.name}"
    return Job(name, row.module, arguments, directory / run_directory.RESULTS, needs)


def _preparations(sweep: Sweep, dataset: str, row: Row) -> list[Job]:
    """Image caches, pseudo-labels and descriptions, before any run reads them: two workers that
    made them at the same time would do the work twice."""
    if row.module == CLASSIFY:
        return []
    shared = tuple(a for a in row.overrides if not _key(a).startswith(("method.", "train.")))
    of_groups = tuple(a for a in shared if _key(a).startswith("descriptions."))
    plain = tuple(a for a in shared if a not in of_groups)
    found = [_preparation(sweep, dataset, PSEUDO_LABEL, plain)]
    needs = (found[0].name,)
    if row.describes:
        found.append(_preparation(sweep, dataset, DESCRIBE, plain, "image,group", needs))
    if row.describes and of_groups:  # descriptions of single images are the same
        found.append(_preparation(sweep, dataset, DESCRIBE, shared, "group", needs))
    return found


def _preparation(
    sweep: Sweep,
    dataset: str,
    module: str,
    overrides: tuple[str, ...],
    kinds: str = "",
    needs: tuple[str, ...] = (),
) -> Job:
    """A preparation; its mark is named after what it is made for, so that none counts for another
    model, prompt or share."""
    config = sweep.config(dataset, overrides)
    sections = ("weights", "templates", "dataset", "descriptions", "image_cache", "artifacts")
    values = sorted((k, v) for k, v in leaves(config) if k.split(".")[0] in sections)
    digest = hashlib.sha256(repr([values, kinds]).encode()).hexdigest()[:8]
    name = f"{'descriptions' if kinds else 'pseudo-labels'}-{digest}"
    arguments = sweep.arguments(dataset, overrides) + ((f"--kind={kinds}",) if kinds else ())
    made = tuple(descriptions_path(config, kind) for kind in kinds.split(",") if kind)
    mark = sweep.out / column(dataset) / "prepared" / name
    return Job(f"{column(dataset)}/{name}", module, arguments, mark, needs, made)
