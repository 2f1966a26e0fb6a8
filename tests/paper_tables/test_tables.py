"""The rows of the tables against the paper's numbers and the configurations that they make."""

from __future__ import annotations

import pytest

from lattec_jax.methods import METHODS, make_method
from lattec_jax.paper_tables.plan import config_argument
from lattec_jax.paper_tables.tables import TABLES, TRAIN, numbers, paper_datasets
from lattec_jax.runtime.config import parse

PAPER = numbers()


def test_the_ten_data_sets_are_in_the_papers_order():
    assert " ".join(paper_datasets()) == (
        "eurosat sun397 food101 flowers102 dtd fgvc_aircraft oxford_pets stanford_cars ucf101 "
        "caltech101"
    )


@pytest.mark.parametrize("key", ["1", "2", "3", "4", "5"])
def test_every_row_of_the_paper_is_a_row_and_the_other_way_round(key):
    table = TABLES[key]
    assert sorted(row.label for row in table.rows) == sorted(PAPER[table.paper])
    for row in table.rows:
        for dataset in (*paper_datasets(), "average"):
            assert table.printed(row, dataset) == PAPER[table.paper][row.label][dataset]
        assert table.printed(row, "demo") is None


def test_figure_6_has_the_changes_that_the_paper_prints():
    table = TABLES["figure6"]
    printed = {row.label: table.printed_change(row) for row in table.rows}
    assert printed == {
        "latteclip, 100%": None,
        "latteclip, 20%": -0.77,
        "latteclip, 1%": -6.36,
        "oracle, 100%": None,
        "oracle, 20%": -1.3,
        "oracle, 1%": -7.28,
    }


def test_rows_that_share_a_name_are_the_same_run():
    runs = {}
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(names) == len(set(names))
        for row in table.rows:
            run = (row.module, row.method, row.overrides, row.needs_descriptions, row.seeded)
            assert runs.setdefault(row.name, run) == run


def test_rows_make_the_methods_that_they_name():
    made = {}
    for row in (row for table in TABLES.values() for row in table.rows if row.module == TRAIN):
        file = config_argument("configs/eurosat.py", "paper", row.method)
        config, _ = parse(["train", file, *row.overrides])
        assert config.method.name in METHODS
        method = make_method(config.method)
        made[row.name] = (config, method)
        assert row.needs_descriptions == ("descriptions" in method.requires)
    whole = made["latteclip"][1]
    assert (whole.alpha, whole.momentum, whole.use_mixer) == (0.99, 0.99, True)
    assert made["texts-image"][1].description_kinds == ("image",)
    assert not made["texts-image+group"][1].class_text
    assert made["texts-class"][1].description_kinds == ()
    assert not made["without-mixer"][1].use_mixer
    assert made["without-L_ft"][1].label_names == ("zero_shot",)
    assert made["without-L_zs"][1].label_names == ("current",)
    momentum = made["without-momentum"][1]
    assert (momentum.alpha, momentum.momentum) == (0, 0)
    assert made["correct-3"][0].descriptions.correct_per_group == 3
    assert made["group-of-16"][0].descriptions.group_size == 16
    assert made["latteclip-fraction-0.01"][0].dataset.train_fraction == 0.01
    assert "labels" in made["flyp_oracle-fraction-0.2"][1].requires
