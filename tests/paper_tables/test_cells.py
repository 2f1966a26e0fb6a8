"""Means, deviations, the paper's numbers and ranks of the cells, and how they are written."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest

from lattec_jax.paper_tables.cells import BEST, SECOND, make_sheet, read_results
from lattec_jax.paper_tables.plan import Sweep
from lattec_jax.paper_tables.tables import numbers, paper_datasets
from lattec_jax.sweep import write_tables


def written(plan: Sweep) -> str:
    """The Markdown of what is there."""
    return write_tables(plan, read_results(plan))


def test_a_cell_holds_mean_deviation_and_difference(sweep, write_run):
    plan = sweep("1", "eurosat", (0, 1, 2))
    top1 = [0.80, 0.83, 0.85]
    for seed, value in enumerate(top1):
        write_run("eurosat", "latteclip", seed, value)
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    cell = sheet.cells[sheet.rows.index("latteclip")][0]
    assert cell.mean == pytest.approx(100 * np.mean(top1))
    assert cell.deviation == pytest.approx(100 * np.std(top1, ddof=1))
    assert cell.difference == pytest.approx(100 * np.mean(top1) - 80.27)
    text = written(plan)
    assert "| latteclip | 82.67 ± 2.52<br>80.27 (+2.40) |" in text
    # Not run: the paper's number alone.
    assert "| reclip | 49.25 |" in text
    assert "3 of 14 runs are there" in text


def test_best_and_second_leave_the_oracle_out(sweep, write_run):
    plan = sweep("1", "eurosat", (0,))
    for row, value in (("flyp_oracle", 0.9), ("flyp", 0.6), ("latteclip", 0.7), ("reclip", 0.5)):
        write_run("eurosat", row, 0, value)
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    ranks = {label: cells[0].rank for label, cells in zip(sheet.rows, sheet.cells, strict=True)}
    assert ranks.pop("latteclip") == BEST and ranks.pop("flyp + pseudo-label") == SECOND
    assert set(ranks.values()) == {0}
    assert "| 90.00<br>94.46 (-4.46) |" in written(plan)  # one seed has no deviation


def test_runs_by_another_protocol_are_not_compared(sweep, write_run):
    plan = sweep("1", "eurosat,food101", (0,))
    write_run("eurosat", "latteclip", 0, 0.75)
    write_run("food101", "latteclip", 0, 0.77, protocol="tfds, inductive, last step")
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    eurosat, food101, average = sheet.cells[sheet.rows.index("latteclip")]
    assert (eurosat.paper, food101.paper, average.paper) == (80.27, None, None)
    assert average.mean == pytest.approx(76)
    text = written(plan)
    assert (
        "Compared with the paper: runs of the preset paper, dtype float32. Not compared with the "
        "paper: food101: the protocol is 'tfds, inductive, last step' instead of 'coop, inductive, "
        "last step'."
    ) in text


def test_an_average_needs_every_data_set_and_takes_the_papers_same_ones(sweep, write_run):
    plan = sweep("1", "eurosat,dtd", (0, 1))
    for seed, (eurosat, dtd) in enumerate(((0.8, 0.5), (0.9, 0.6))):
        write_run("eurosat", "latteclip", seed, eurosat)
        write_run("dtd", "latteclip", seed, dtd)
    write_run("eurosat", "flyp", 0, 0.6)
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    assert sheet.columns == ("eurosat", "dtd", "average")
    average = sheet.cells[sheet.rows.index("latteclip")][2]
    assert average.values == pytest.approx((65, 75))  # seed by seed
    assert average.paper == pytest.approx((80.27 + 56.26) / 2)
    assert sheet.cells[sheet.rows.index("flyp + pseudo-label")][2].mean is None


def test_figure_6_states_the_change_seed_by_seed(sweep, write_run):
    plan = sweep("figure6", "demo", (0, 1))
    for row, values in (("latteclip", (0.8, 0.7)), ("latteclip-fraction-0.2", (0.75, 0.68))):
        for seed, value in enumerate(values):
            fraction = ", 20% of the training images" if "train_fraction" in row else ""
            write_run("demo", row, seed, value, protocol="digits" + fraction)
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    assert sheet.columns == ("demo", "change")
    change = dict(zip(sheet.rows, sheet.cells, strict=True))["latteclip, 20%"][1]
    assert change.values == pytest.approx((-5, -2)) and change.paper is None
    assert "-3.50 ± 2.12" in written(plan)


def test_runs_without_labels_leave_the_cell_empty(sweep, write_run):
    plan = sweep("1", "demo", (0,))
    write_run("demo", "latteclip", 0, None)
    assert "| latteclip |  |" in written(plan)


def test_the_average_of_all_ten_is_the_one_that_the_paper_prints(sweep):
    plan = sweep("1", ",".join(paper_datasets()), (0,))
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    averages = {row: cells[-1].paper for row, cells in zip(sheet.rows, sheet.cells, strict=True)}
    printed = numbers()["table1_main"]
    assert averages == {row: printed[row]["average"] for row in averages}
    assert averages["flyp + pseudo-label"] == 70.01  # the mean of its ten numbers is 69.94


def test_averages_and_changes_take_the_seeds_that_are_common(sweep, write_run):
    plan = sweep("1", "eurosat,dtd", (0, 1, 2))
    for dataset, seeds in (("eurosat", (0, 1)), ("dtd", (0, 2))):
        for seed in seeds:
            write_run(dataset, "latteclip", seed, 0.6 + seed / 10)
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    eurosat, _, average = sheet.cells[sheet.rows.index("latteclip")]
    assert average.values == pytest.approx((60,)) and average.num_runs == 3
    assert eurosat.rank == 0
    assert "65.00 ± 7.07 (2 of 3)" in written(plan)

    plan = sweep("figure6", "demo", (0, 1, 2))
    for row, seeds in (("latteclip", (0, 1)), ("latteclip-fraction-0.2", (1, 2))):
        for seed in seeds:
            write_run("demo", row, seed, 0.9 - seed / 10 - (len(row) > 9) / 10)
    sheet = make_sheet(plan, plan.tables[0], read_results(plan))
    change = dict(zip(sheet.rows, sheet.cells, strict=True))["latteclip, 20%"][-1]
    assert change.values == pytest.approx((-10,))  # of seed 1 alone


def test_the_facts_say_with_what_all_runs_were_made(sweep, write_run):
    plan = dataclasses.replace(sweep("1", "demo"), overrides=("--config.train.max_steps=2",))
    write_run("demo", "latteclip", 0, 0.5)
    text = written(plan)
    assert "All runs with: --config.train.max_steps=2." in text
    assert "1 of 9 runs are there" in text  # four rows of two seeds, zero-shot once, no LLaVA
    assert "demo: no llava zero-shot, the engine pixels cannot name classes." in text


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"adapted": {"top1": "0.5"}}',
        '{"adapted": {"top1": NaN}}',
        '{"adapted": {"top1": 50}}',
        '{"adapted": {"top1": 0.5}, "dataset": "demo"}',
        '{"adapted": null, "dataset": "demo", "protocol": null, "n_train": 1, "n_test": 1}',
    ],
)
def test_damaged_results_are_named_and_count_as_missing(sweep, write_run, damage):
    plan = sweep("1", "demo", (0,))
    write_run("demo", "flyp", 0, 0.5)
    path = write_run("demo", "latteclip", 0, 0.5)
    path.write_text(damage, encoding="utf-8")
    text = written(plan)
    assert "| latteclip |  |" in text and "50.00" in text
    assert "latteclip-s0/results.json" in text


class Reader(HTMLParser):
    """Collects the cells of all tables, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


def test_the_page_holds_the_same_and_fetches_nothing(sweep, write_run):
    plan = sweep("1,2", "eurosat", (0, 1))
    for seed in (0, 1):
        write_run("eurosat", "latteclip", seed, 0.8)
    written(plan)
    reader = Reader()
    reader.feed((plan.out / "tables.html").read_text(encoding="utf-8"))
    assert not reader.open and not reader.links
    assert "80.00 ± 0.0080.27 (-0.27)" in reader.cells
    assert "class+image+group" in reader.cells
    assert (plan.out / "tables.md").is_file()
