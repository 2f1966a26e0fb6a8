"""What the runs of a sweep found, as the cells of its tables. Accuracies are in per cent."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lattec_jax import workdir
from lattec_jax.data.coop import PROTOCOL
from lattec_jax.errors import DataError
from lattec_jax.sweep.plan import Sweep
from lattec_jax.sweep.tables import Row, Table, paper_datasets

Found = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]  # by data set and row name
BEST, SECOND = 1, 2


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row's accuracy on a data set; no values where runs are missing.

    Attributes:
        values: of the runs, or their changes in points.
        paper: what the paper prints, None where it does not or where it cannot be compared.
        rank: BEST, SECOND or 0 in its column.
        change: whether the values are differences between two accuracies.
    """

    values: tuple[float, ...]
    paper: float | None = None
    rank: int = 0
    change: bool = False

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
    """One table, ready to be written: `cells[r][c]` is row r in column c."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]
    note: str


def read_results(sweep: Sweep) -> Found:
    """The results of the runs that have ended.

    Raises:
        DataError: a `results.json` is damaged.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for dataset in sweep.datasets:
        for row in {row.name: row for table in sweep.tables for row in table.rows}.values():
            for seed in sweep.row_seeds(row):
                path = sweep.workdir(dataset, row, seed) / workdir.RESULTS
                if path.exists():
                    found.setdefault((dataset, row.name), []).append(_read(path))
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["adapted"] is not None:
            float(results["adapted"]["top1"])
        return results
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected the results of a run, found something else "
            f"({type(error).__name__}: {error}); remove that work directory and run the sweep again"
        ) from error


def comparable(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs followed the paper's protocol, a share of the training images apart."""
    return all(run["protocol"].startswith(PROTOCOL) for run in results)


def make_sheet(sweep: Sweep, table: Table, found: Found) -> Sheet:
    """One table with the columns of its data sets and, of several, their average; of Figure 6 the
    average change."""
    names = [Path(dataset).stem for dataset in sweep.datasets]
    columns = [[_cell(table, row, d, found) for row in table.rows] for d in sweep.datasets]
    if any(row.all_data for row in table.rows):
        columns.append([_change(sweep, table, row, found) for row in table.rows])
        names.append("change" if len(sweep.datasets) == 1 else "average change")
    elif len(sweep.datasets) > 1:
        columns.append([_average(sweep, table, row, found) for row in table.rows])
        names.append("average")
    ranked = [row.ranked and not row.all_data for row in table.rows]
    if not any(row.all_data for row in table.rows):
        columns = [_rank(column, ranked) for column in columns]
    labels = tuple(row.label for row in table.rows)
    cells = tuple(zip(*columns, strict=True))
    return Sheet(table.title, tuple(names), labels, cells, table.note)


def _top1(runs: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Test accuracies of the runs that had labels to measure with."""
    return tuple(100 * run["adapted"]["top1"] for run in runs if run["adapted"] is not None)


def _cell(table: Table, row: Row, dataset: str, found: Found) -> Cell:
    runs = found.get((dataset, row.name), ())
    printed = table.printed(row, Path(dataset).stem)
    return Cell(_top1(runs), printed if comparable(runs) else None)


def _complete(sweep: Sweep, row: str, found: Found) -> bool:
    """Whether a row has at least one result on each data set."""
    return all(_top1(found.get((dataset, row), ())) for dataset in sweep.datasets)


def _by_seed(sweep: Sweep, row: Row, found: Found) -> tuple[float, ...]:
    """The average over the data sets, seed by seed where all have the same seeds."""
    accuracies = [_top1(found[dataset, row.name]) for dataset in sweep.datasets]
    if len({len(values) for values in accuracies}) == 1:
        return tuple(statistics.fmean(values) for values in zip(*accuracies, strict=True))
    return (statistics.fmean(statistics.fmean(values) for values in accuracies),)


def _average(sweep: Sweep, table: Table, row: Row, found: Found) -> Cell:
    """Over all data sets; the paper's average is of the same ones."""
    if not _complete(sweep, row.name, found):
        return Cell(())
    printed = [_cell(table, row, dataset, found).paper for dataset in sweep.datasets]
    paper = None if None in printed else statistics.fmean(printed)
    return Cell(_by_seed(sweep, row, found), paper)


def _change(sweep: Sweep, table: Table, row: Row, found: Found) -> Cell:
    """The average change against all the training images."""
    if row.all_data is None or not (
        _complete(sweep, row.name, found) and _complete(sweep, row.all_data, found)
    ):
        return Cell((), change=True)
    ours = _by_seed(sweep, row, found)
    whole = _by_seed(sweep, dataclasses.replace(row, name=row.all_data), found)
    if len(ours) == len(whole):
        values = tuple(a - b for a, b in zip(ours, whole, strict=True))
    else:
        values = (statistics.fmean(ours) - statistics.fmean(whole),)
    same = {Path(d).stem for d in sweep.datasets} == set(paper_datasets())
    runs = [run for d in sweep.datasets for run in found[d, row.name]]
    paper = table.printed_change(row) if same and comparable(runs) else None
    return Cell(values, paper, change=True)


def _rank(column: Sequence[Cell], ranked: Sequence[bool]) -> list[Cell]:
    """Mark the best and the second best; equal means share a mark."""
    means = {cell.mean for cell, r in zip(column, ranked, strict=True) if r} - {None}
    marks = dict(zip(sorted(means, reverse=True), (BEST, SECOND), strict=False))
    return [
        dataclasses.replace(cell, rank=marks.get(cell.mean, 0) if r else 0)
        for cell, r in zip(column, ranked, strict=True)
    ]
