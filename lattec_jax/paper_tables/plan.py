"""Jobs of a sweep: preparations, then one run for each row, data set and seed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lattec_jax.data.datasets.file_locator import data_root
from lattec_jax.data.descriptions import descriptions_path
from lattec_jax.data.downloads.sources import source_of
from lattec_jax.paper_tables.tables import CLASSIFY, TABLES, Row, Table
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import flatten, parse
from lattec_jax.runtime.config_file import DEFAULTS
from lattec_jax.runtime.errors import ConfigError, did_you_mean

DOWNLOAD = "lattec_jax.download"
PSEUDO_LABEL = "lattec_jax.pseudo_label"
DESCRIBE = "captioning.describe"
NO_CLASSES = ("pixels",)  # engines that answer no question about classes
# Values of the row "latteclip", which most tables compare with.
_LATTECLIP = {
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
    """One command; `product` exists once it has succeeded."""

    name: str  # unique in a sweep, such as "eurosat/latteclip-s0"
    module: str  # of the command, `python -m <module>`
    arguments: tuple[str, ...]
    product: Path  # `results.json` of a run, the marker file of a preparation
    needs: tuple[str, ...] = ()  # names of the preparations that must have succeeded before
    made: tuple[Path, ...] = ()  # files of a preparation, as far as their paths are known

    @property
    def is_preparation(self) -> bool:
        """Whether the command makes files that several runs read."""
        return self.module in (DOWNLOAD, PSEUDO_LABEL, DESCRIBE)

    @property
    def done(self) -> bool:
        """Whether the command has succeeded, in this sweep or an earlier one."""
        return self.product.exists() and all(path.exists() for path in self.made)

    @property
    def command(self) -> str:
        """The shell command in one line; a preparation creates its marker file at the end."""
        line = shlex.join(["python", "-m", self.module, *self.arguments])
        if self.is_preparation:
            mark = shlex.quote(str(self.product))
            line += f" && mkdir -p {shlex.quote(str(self.product.parent))} && touch {mark}"
        return line


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Tables, data sets and seeds of a sweep. ConfigError if two data sets have the same column
    name, or an override sets a key that the rows set."""

    tables: tuple[Table, ...]
    datasets: tuple[str, ...]  # names of configurations or paths to them
    seeds: tuple[int, ...]
    out: Path
    overrides: tuple[str, ...] = ()  # `--config.key=value` for all runs
    preset: str = DEFAULTS["preset"]  # of all runs
    downloads: bool = False  # whether the public files of the data sets are downloaded first

    def __post_init__(self) -> None:
        stem, count = Counter(map(column, self.datasets)).most_common(1)[0]
        if count > 1:
            raise ConfigError(
                f"--datasets: {count} configurations are called {stem!r}; name each once, or rename"
            )
        for override in self.overrides:
            key = _key(override)
            if key in ("preset", "presets"):
                raise ConfigError(f"{override}: choose the preset of all runs with --preset=NAME")
            if key in _keys_of_rows():
                raise ConfigError(
                    f"{override}: the rows of the tables set config.{key} themselves; leave it out"
                )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all tables without repetition."""
        return tuple({row.name: row for table in self.tables for row in table.rows}.values())

    def config_arguments(
        self, dataset: str, overrides: Sequence[str] = (), method: str = ""
    ) -> tuple[str, ...]:
        """Return a command's `--config...` arguments; without a method, those of a preparation."""
        file = dataset if dataset.endswith(".py") else f"configs/{dataset}.py"
        return (config_argument(file, self.preset, method), *self.overrides, *overrides)

    def config(self, dataset: str, overrides: Sequence[str] = (), method: str = "") -> ConfigDict:
        """Return the configuration of a data set."""
        return load_config(self.config_arguments(dataset, overrides, method))

    def workdir(self, dataset: str, row: Row, seed: int) -> Path:
        """Return the work directory of a run."""
        return self.out / column(dataset) / f"{row.name}-s{seed}"

    def row_seeds(self, row: Row) -> tuple[int, ...]:
        """Return the seeds of a row: only the first if all give the same result."""
        return self.seeds if row.seeded else self.seeds[:1]


def config_argument(file: str | Path, preset: str, method: str = "") -> str:
    """Return `--config=FILE:preset=NAME,method=NAME`."""
    return f"--config={file}:preset={preset}" + (f",method={method}" if method else "")


@functools.cache
def load_config(arguments: tuple[str, ...]) -> ConfigDict:
    """Return the locked configuration of a command's arguments; the tables ask often."""
    return parse(["sweep", *arguments])[0]


def column(dataset: str) -> str:
    """Return the name of a data set in tables and directories."""
    return Path(dataset).stem


def choose_tables(keys: Sequence[str]) -> tuple[Table, ...]:
    """Return the tables of these keys; raise ConfigError if there is no such table."""
    for key in keys:
        if key not in TABLES:
            raise ConfigError(
                f"--tables: expected some of {','.join(TABLES)}, found {key!r}. "
                f"{did_you_mean(key, TABLES)}"
            )
    return tuple(TABLES[key] for key in dict.fromkeys(keys))


def make_jobs(sweep: Sweep) -> list[Job]:
    """Return all jobs without repetition, in the order in which they are run. Raise ConfigError if
    a configuration does not exist or differs from the tables' LatteCLIP, or a work directory
    contains the run of another configuration; DataError if files are to be downloaded and there is
    no data directory."""
    jobs: dict[str, Job] = {}
    for dataset in sweep.datasets:
        _check_method(sweep, dataset)
        runs: dict[str, Job] = {}
        files = _downloads(sweep, dataset)
        for row in sweep.rows:
            if not runs_here(sweep, dataset, row):
                continue
            preparations = [*files, *_preparations(sweep, dataset, row, files)]
            jobs |= {job.name: job for job in preparations}
            needs = tuple(job.name for job in preparations)
            found = (_run(sweep, dataset, row, seed, needs) for seed in sweep.row_seeds(row))
            runs |= {job.name: job for job in found}
        jobs |= runs
    return list(jobs.values())


def runs_here(sweep: Sweep, dataset: str, row: Row) -> bool:
    """Whether a row can be run on a data set: some engines cannot name classes."""
    if row.module != CLASSIFY:
        return True
    return sweep.config(dataset).descriptions.engine not in NO_CLASSES


def commands(jobs: Sequence[Job], module: str | None) -> list[str]:
    """Return the commands of a module's preparations, or (None) of the runs, that are not done."""
    wanted = [job for job in jobs if (job.module == module if module else not job.is_preparation)]
    return [job.command for job in wanted if not job.done]


def _key(override: str) -> str:
    """The key of `--config.key=value`."""
    return override.lstrip("-").partition("=")[0].removeprefix("config.")


def _keys_of_rows() -> set[str]:
    """Return the keys that the tables vary or expect to be unchanged."""
    rows = (row for table in TABLES.values() for row in table.rows)
    keys = {_key(override) for row in rows for override in row.overrides}
    return keys | _LATTECLIP.keys() | {"seed", "dataset.name", "method.name"}


def _check_method(sweep: Sweep, dataset: str) -> None:
    """Refuse a configuration that differs from what the tables call LatteCLIP."""
    config = sweep.config(dataset)
    if not config.dataset.name:
        raise ConfigError(f"--datasets: the configuration {dataset} names no data set")
    found = dict(flatten(config))
    for key, expected in _LATTECLIP.items():
        if found[key] != expected:
            raise ConfigError(
                f"--datasets: the tables expect config.{key}={expected!r}, found {found[key]!r} in "
                f"the configuration {dataset}"
            )


def _run(sweep: Sweep, dataset: str, row: Row, seed: int, needs: tuple[str, ...]) -> Job:
    overrides = (*row.overrides, f"--config.seed={seed}")
    directory = sweep.workdir(dataset, row, seed)
    if (directory / run_directory.CONFIG).exists():
        config = sweep.config(dataset, overrides, row.method)
        if row.module == CLASSIFY:  # it records itself as a method of its own
            config = config.copy_and_resolve_references().unlock()
            config.method.name = row.name
        run_directory.check_available(directory, config)
    arguments = (*sweep.config_arguments(dataset, overrides, row.method), f"--workdir={directory}")
    name = f"{directory.parent.name}/{directory.name}"
    return Job(name, row.module, arguments, directory / run_directory.RESULTS, needs)


def _downloads(sweep: Sweep, dataset: str) -> list[Job]:
    """Return the job that downloads the files of a data set, if it is wanted and they are known."""
    settings = sweep.config(dataset).dataset
    source = source_of(settings) if sweep.downloads else None
    if source is None:
        return []
    made = [settings.images, *([settings.split] if settings.split else [])]
    made += source.archive.files if source.archive else ()
    root, name = data_root(settings.root), f"{column(dataset)}/download"
    mark = sweep.out / column(dataset) / "prepared" / "download"
    arguments = sweep.config_arguments(dataset)
    return [Job(name, DOWNLOAD, arguments, mark, made=tuple(root / path for path in made))]


def _preparations(sweep: Sweep, dataset: str, row: Row, files: Sequence[Job]) -> list[Job]:
    """Return the jobs that make image caches, pseudo-labels and descriptions, after the download of
    the files.

    They precede all runs: two workers that made them at the same time would do the work twice.
    """
    if row.module == CLASSIFY:
        return []
    shared = tuple(a for a in row.overrides if not _key(a).startswith(("method.", "train.")))
    of_groups = tuple(a for a in shared if _key(a).startswith("descriptions."))
    plain = tuple(a for a in shared if a not in of_groups)
    before = tuple(job.name for job in files)
    found = [_preparation(sweep, dataset, PSEUDO_LABEL, plain, needs=before)]
    needs = (*before, found[0].name)
    if row.needs_descriptions:
        found.append(_preparation(sweep, dataset, DESCRIBE, plain, "image,group", needs))
    if row.needs_descriptions and of_groups:  # descriptions of single images are the same
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
    """Return a preparation, whose marker file is named after the values that it depends on."""
    config = sweep.config(dataset, overrides)
    sections = ("weights", "templates", "dataset", "descriptions", "image_cache", "artifacts")
    values = sorted((k, v) for k, v in flatten(config) if k.split(".")[0] in sections)
    digest = hashlib.sha256(repr([values, kinds]).encode()).hexdigest()[:8]
    name = f"{'descriptions' if kinds else 'pseudo-labels'}-{digest}"
    arguments = sweep.config_arguments(dataset, overrides) + ((f"--kind={kinds}",) if kinds else ())
    made = tuple(descriptions_path(config, kind) for kind in kinds.split(",") if kind)
    mark = sweep.out / column(dataset) / "prepared" / name
    return Job(f"{column(dataset)}/{name}", module, arguments, mark, needs, made)
