"""Results of a sweep's runs as the cells of its tables. Accuracies are in percent."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lattec_jax.paper_tables.comparable import reason_not_comparable
from lattec_jax.paper_tables.plan import Sweep, column
from lattec_jax.paper_tables.tables import Row, Table, paper_datasets
from lattec_jax.runtime import run_directory
from lattec_jax.runtime.config import flatten, from_json
from lattec_jax.runtime.errors import ConfigError, DataError

Results = Mapping[str, Any]  # of one run, `results.json`
BEST, SECOND = 1, 2


@dataclasses.dataclass(frozen=True)
class CollectedResults:
    """Results of the runs that have finished, by data set and row."""

    runs: Mapping[tuple[str, str], Mapping[int, Results]]  # and by seed
    damaged: tuple[str, ...]  # errors of `results.json` files; these runs count as missing
    reasons: Mapping[tuple[str, str], str]  # why the runs are not compared with the paper's

    def of(self, dataset: str, row: str) -> Mapping[int, Results]:
        """The runs of a row by seed."""
        return self.runs.get((dataset, row), {})

    def top1(self, dataset: str, row: str) -> dict[int, float]:
        """Return the accuracies in percent by seed, of runs with labels to measure with."""
        return {
            seed: 100 * run["adapted"]["top1"]
            for seed, run in self.of(dataset, row).items()
            if run["adapted"] is not None
        }


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row's accuracy on a data set; no values where runs are missing."""

    values: tuple[float, ...]  # of the runs, or their changes in points
    num_runs: int  # when the sweep is complete
    paper: float | None = None  # None if it prints none or the runs cannot be compared with it
    rank: int = 0  # BEST, SECOND or 0 in its column
    change: bool = False  # whether the values are differences between two accuracies

    @property
    def mean(self) -> float | None:
        """Over the seeds."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table to write: `cells[r][c]` is row r in column c."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    note: str


def read_results(sweep: Sweep) -> CollectedResults:
    """Read the results of the runs that have finished."""
    runs: dict[tuple[str, str], dict[int, Results]] = {}
    damaged: list[str] = []
    reasons: dict[tuple[str, str], str] = {}
    for dataset, row in itertools.product(sweep.datasets, sweep.rows):
        for seed in sweep.row_seeds(row):
            directory = sweep.workdir(dataset, row, seed)
            path = directory / run_directory.RESULTS
            if not path.exists():
                continue
            try:
                run = read_run(path)
            except DataError as error:
                damaged.append(str(error))
                continue
            runs.setdefault((dataset, row.name), {})[seed] = run
            reason = reason_not_comparable(dataset, row, directory, run)
            if reason is not None:
                reasons.setdefault((dataset, row.name), reason)
    return CollectedResults(runs, tuple(damaged), reasons)


def read_run(path: Path) -> Results:
    """Read the results of one run that the tables need; DataError if they are damaged."""
    from lattec_jax.runtime import schemas

    advice = "remove that work directory and run the sweep again"
    run = schemas.read(path, schemas.SweepResults, DataError, advice)
    run["n_left_out"] = run.get("n_left_out") or {"train": 0, "test": 0}
    return run


def make_sheet(sweep: Sweep, table: Table, found: CollectedResults) -> Sheet:
    """Return a table with a column per data set and one for the average of several.

    The last column of Figure 6 is the average change.
    """
    names = [column(dataset) for dataset in sweep.datasets]
    columns = [[_cell(sweep, table, row, d, found) for row in table.rows] for d in sweep.datasets]
    if any(row.all_data for row in table.rows):
        columns.append([_change(sweep, table, row, found) for row in table.rows])
        names.append("change" if len(sweep.datasets) == 1 else "average change")
    else:
        if len(sweep.datasets) > 1:
            columns.append([_average(sweep, table, row, found) for row in table.rows])
            names.append("average")
        ranked = [row.ranked for row in table.rows]
        columns = [_rank(cells, ranked) for cells in columns]
    labels = tuple(row.label for row in table.rows)
    cells = tuple(zip(*columns, strict=True))
    return Sheet(table.title, tuple(names), labels, cells, _note(sweep, table, found))


def _readings(sweep: Sweep, table: Table, found: CollectedResults) -> list[str]:
    """Return the values of the table's reading that its runs record, or the configured ones."""
    values = []
    for dataset, row in itertools.product(sweep.datasets, table.rows):
        for seed in found.of(dataset, row.name):
            # `reason_not_comparable` gives a configuration that cannot be read as a reason.
            with contextlib.suppress(ConfigError):
                config = from_json(sweep.workdir(dataset, row, seed) / run_directory.CONFIG)
                values.append(dict(flatten(config)).get(table.reading))
    recorded = [value for value in values if value is not None]
    configured = [dict(flatten(sweep.config(name)))[table.reading] for name in sweep.datasets]
    return list(dict.fromkeys(map(str, recorded or configured)))


def _note(sweep: Sweep, table: Table, found: CollectedResults) -> str:
    """Return the table's note, its reading, and what was and was not compared, and why."""
    parts = [table.note] if table.note else []
    if table.reading:
        parts.append(f"Here: config.{table.reading}={', '.join(_readings(sweep, table, found))}.")
    compared: list[Results] = []
    refused: dict[str, list[str]] = {}
    for dataset in sweep.datasets:
        rows = [row for row in table.rows if found.of(dataset, row.name)]
        reasons = {row.label: found.reasons.get((dataset, row.name)) for row in rows}
        for row in rows:
            if reasons[row.label] is None and table.printed(row, column(dataset)) is not None:
                compared += found.of(dataset, row.name).values()
        for reason in dict.fromkeys(filter(None, reasons.values())):
            labels = [label for label, own in reasons.items() if own == reason]
            every = len(labels) == len(rows)
            which = column(dataset) + ("" if every else f" ({', '.join(labels)})")
            refused.setdefault(reason, []).append(which)
    if compared:
        presets, dtypes = listed(compared, "preset"), listed(compared, "dtype")
        parts.append(f"Compared with the paper: runs of the preset {presets}, dtype {dtypes}.")
    parts += [
        f"Not compared with the paper: {', '.join(which)}: {reason}."
        for reason, which in refused.items()
    ]
    return " ".join(parts)


def listed(runs: Iterable[Results], key: str) -> str:
    """Return all values of a key in the runs, most frequent first."""
    found = [str(run[key]) for run in runs if run.get(key) is not None]
    return " | ".join(sorted(set(found), key=lambda v: (-found.count(v), v))) or "none"


def _cell(sweep: Sweep, table: Table, row: Row, dataset: str, found: CollectedResults) -> Cell:
    values = tuple(found.top1(dataset, row.name).values())
    printed = table.printed(row, column(dataset))
    paper = None if (dataset, row.name) in found.reasons else printed
    return Cell(values, len(sweep.row_seeds(row)), paper)


def _average_by_seed(sweep: Sweep, name: str, found: CollectedResults) -> dict[int, float]:
    """Return the average over the data sets, for the seeds that all of them have."""
    accuracies = [found.top1(dataset, name) for dataset in sweep.datasets]
    seeds = set.intersection(*(set(values) for values in accuracies))
    return {seed: statistics.fmean(values[seed] for values in accuracies) for seed in sorted(seeds)}


def _all_ten(sweep: Sweep, found: CollectedResults, *rows: str) -> bool:
    """Whether the columns are the paper's and all runs of the rows can be compared."""
    refused = any((dataset, row) in found.reasons for dataset in sweep.datasets for row in rows)
    return {*map(column, sweep.datasets)} == {*paper_datasets()} and not refused


def _average(sweep: Sweep, table: Table, row: Row, found: CollectedResults) -> Cell:
    """Return the cell of the average over the data sets.

    The paper's number is the printed one for all ten, and the mean of its numbers for fewer.
    """
    printed = [_cell(sweep, table, row, dataset, found).paper for dataset in sweep.datasets]
    known = [number for number in printed if number is not None]
    paper = statistics.fmean(known) if len(known) == len(printed) else None
    if _all_ten(sweep, found, row.name):
        paper = table.printed(row, "average")
    values = tuple(_average_by_seed(sweep, row.name, found).values())
    return Cell(values, len(sweep.row_seeds(row)), paper)


def _change(sweep: Sweep, table: Table, row: Row, found: CollectedResults) -> Cell:
    """Return the average change against all training images, for the seeds that both rows have."""
    num_runs = len(sweep.row_seeds(row))
    if row.all_data is None:
        return Cell((), num_runs, change=True)
    ours = _average_by_seed(sweep, row.name, found)
    full = _average_by_seed(sweep, row.all_data, found)
    values = tuple(ours[seed] - full[seed] for seed in ours if seed in full)
    known = _all_ten(sweep, found, row.name, row.all_data)
    paper = table.printed_change(row) if known else None
    return Cell(values, num_runs, paper, change=True)


def _rank(cells: Sequence[Cell], ranked: Sequence[bool]) -> list[Cell]:
    """Mark the best and the second best of at least two complete cells; equal means share one."""
    means = [
        cell.mean if is_ranked and len(cell.values) == cell.num_runs else None
        for cell, is_ranked in zip(cells, ranked, strict=True)
    ]
    complete = [mean for mean in means if mean is not None]
    marks = dict(zip(sorted({*complete}, reverse=True), (BEST, SECOND), strict=False))
    if len(complete) < 2:
        marks = {}
    return [
        cell if mean is None else dataclasses.replace(cell, rank=marks.get(mean, 0))
        for cell, mean in zip(cells, means, strict=True)
    ]
