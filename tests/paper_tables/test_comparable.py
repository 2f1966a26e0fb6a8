"""The paper's numbers beside runs: the reason for leaving them out is in the note of the table."""

from __future__ import annotations

import dataclasses
import fnmatch
import html
import json
import shutil

import pytest

from lattec_jax.paper_tables import comparable
from lattec_jax.paper_tables.cells import read_results
from lattec_jax.paper_tables.plan import Sweep
from lattec_jax.paper_tables.tables import TABLES, paper_datasets
from lattec_jax.runtime.config import flatten, parse
from lattec_jax.runtime.config_file import PACKAGED_CONFIGS
from lattec_jax.sweep import write_tables

SOURCE = {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k", "file": "a.safetensors"}
RATE = "--config.train.learning_rate=1e-5"
COMPARED = "80.00<br>80.27 (-0.27)"


def note(plan: Sweep) -> str:
    """The note below the only table; the HTML page has the same."""
    text = write_tables(plan, read_results(plan))
    last = text.rstrip().rpartition("\n")[2]
    page = html.unescape((plan.out / "tables.html").read_text(encoding="utf-8"))
    assert last and last in page
    return last


def cells(plan: Sweep) -> str:
    """The rows of the only table."""
    text = write_tables(plan, read_results(plan))
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


# What a run's results or its configuration have that the paper's do not, and the reason.
REFUSED = {
    "other weights": (
        {"weights_source": SOURCE | {"pretrained": "openai"}},
        "the weights are ViT-B-32 openai, not ViT-B-32 laion2b_s34b_b79k",
    ),
    "init": (
        {"overrides": ("--config.init=runs/other",)},
        "config.init is 'runs/other' instead of ''",
    ),
    "learning rate": (
        {"overrides": (RATE,)},
        "config.train.learning_rate is 1e-05 instead of 1e-07",
    ),
    "steps": (
        {"overrides": ("--config.train.max_steps=200",)},
        "config.train.max_steps is 200 instead of 2000",
    ),
    "two templates": (
        {"overrides": ('--config.templates=("a photo of a {}.","a {}.")',)},
        "config.templates is ['a photo of a {}.', 'a {}.'] instead of ['a photo of a {}.']",
    ),
    "counts with the right sum": (
        {"n_train": 18_800, "n_test": 8_200},
        "there are 8,200 test images instead of 8,100, 18,800 training images instead of 18,900",
    ),
    "an unreadable image of the other part": (
        {"n_train": 18_899, "n_left_out": {"train": 0, "test": 1}},
        "there are 8,101 test images instead of 8,100, 18,899 training images instead of 18,900",
    ),
    "another data set": ({"dataset": "dtd"}, "the data set is dtd"),
    "a part of the images": (
        {"protocol": "coop, inductive, last step, 378 of 18,900 training images"},
        "the protocol is 'coop, inductive, last step, 378 of 18,900 training images' instead of "
        "'coop, inductive, last step'",
    ),
    "classes": ({"class_names": ["a name"] * 9}, "there are 9 classes instead of 10"),
    "another model": (
        {"weights_source": SOURCE | {"model": "RN50"}},
        "the weights are RN50 laion2b_s34b_b79k, not ViT-B-32",
    ),
    "adapted weights": (
        {"weights_source": SOURCE | {"adapted_with": "flyp"}},
        "the weights were adapted with flyp",
    ),
    "weights of a file": (
        {"weights_source": {"model": None, "pretrained": "laion2b_s34b_b79k.pt"}},
        "the weights are laion2b_s34b_b79k.pt, not ViT-B-32",
    ),
    "weights that are not stated": (
        {"weights_source": None},
        "results.json does not record where the weights come from",
    ),
    "averaged weights": ({"overrides": ("--config.wise_ft=0.5",)}, "config.wise_ft is 0.5"),
    "shuffled descriptions": (
        {"overrides": ("--config.descriptions.shuffle=True",)},
        "config.descriptions.shuffle is True instead of False",
    ),
    "other descriptions": (
        {"overrides": ("--config.descriptions.engine=openai",)},
        "config.descriptions.engine is 'openai' instead of 'llava'",
    ),
    "another method": (
        {"overrides": ("--config.method.mixer=False",)},
        "config.method.mixer is False instead of True",
    ),
    "many keys": (
        {
            "overrides": (
                RATE,
                "--config.train.beta1=0.5",
                "--config.train.beta2=0.5",
                "--config.train.epsilon=0.5",
                "--config.train.epochs=5",
            )
        },
        "config.train.beta1 is 0.5 instead of 0.9, config.train.beta2 is 0.5 instead of 0.98, "
        "config.train.epochs is 5 instead of 50 and 2 more",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_note_says_why_a_run_is_not_compared(sweep, write_run, case):
    changed, reason = REFUSED[case]
    plan = sweep("5", "eurosat", (0,))
    write_run("eurosat", "latteclip", 0, 0.8)
    assert COMPARED in cells(plan) and "Not compared" not in note(plan)
    write_run("eurosat", "latteclip", 0, 0.8, **changed)
    assert "80.27" not in cells(plan) and "80.00" in cells(plan)
    assert f"Not compared with the paper: eurosat: {reason}" in note(plan)


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": "ViT-B-32:laion2b_s34b_b79k", "weights_source": SOURCE},
        {"weights_source": {"hub": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K@main"}},
        {"n_test": 8_099, "unreadable": ["x.jpg"], "n_left_out": {"train": 0, "test": 1}},
        {
            "overrides": (
                "--config.weights=elsewhere/ViT-B-32",
                "--config.artifacts=elsewhere",
                "--config.dataset.root=elsewhere",
                "--config.compute.remat=True",
                "--config.train.microbatch_size=64",
                "--config.image_cache.placement=host",
                "--config.checkpoint_every=100",
                "--config.log_every=1",
                "--config.descriptions.llava.batch_size=2",
            )
        },
    ],
)
def test_how_and_where_a_run_was_computed_does_not_stand_against_it(sweep, write_run, changed):
    plan = sweep("5", "eurosat", (0,))
    write_run("eurosat", "latteclip", 0, 0.8, **changed)
    assert COMPARED in cells(plan)
    assert note(plan) == "Compared with the paper: runs of the preset paper, dtype float32."


def test_runs_of_either_preset_are_compared_and_the_note_names_it(sweep, write_run):
    plan = sweep("5", "eurosat", (0,))
    half = ("--config.compute.dtype=bfloat16",)
    write_run("eurosat", "latteclip", 0, 0.8, half, preset="released_code", dtype="bfloat16")
    assert COMPARED in cells(plan)
    assert (
        note(plan) == "Compared with the paper: runs of the preset released_code, dtype bfloat16."
    )
    write_run("eurosat", "latteclip", 0, 0.8, ("--config.train.epochs=50",), preset="released_code")
    assert "config.train.epochs is 50 instead of 15" in note(plan)
    write_run("eurosat", "latteclip", 0, 0.8, preset="paper")
    config = plan.workdir("eurosat", plan.rows[1], 0) / "config.json"
    assert json.loads(config.read_text())["preset"] == "paper"
    results = config.with_name("results.json")
    results.write_text(results.read_text().replace('"preset": "paper"', '"preset": "ours"'))
    assert "config.preset: expected one of paper, released_code, found 'ours'" in note(plan)


def test_the_weights_sha256_decides_where_it_is_known(sweep, write_run, monkeypatch):
    plan = sweep("5", "eurosat", (0,))
    write_run("eurosat", "latteclip", 0, 0.8, weights_source={"pretrained": "a.safetensors"})
    assert "the weights are a.safetensors" in note(plan)
    monkeypatch.setattr(comparable, "WEIGHTS_SHA256", frozenset({"ab" * 32}))
    assert COMPARED in cells(plan)
    write_run("eurosat", "latteclip", 0, 0.8, weights_sha256="cd" * 32)
    assert f"the weights' SHA-256 is {'cd' * 32}" in note(plan)


def test_only_the_rows_concerned_are_left_out(sweep, write_run):
    plan = sweep("1", "eurosat,dtd", (0,))
    write_run("eurosat", "latteclip", 0, 0.8)
    write_run("dtd", "latteclip", 0, 0.5)
    write_run("eurosat", "flyp", 0, 0.6, (RATE,))
    write_run("dtd", "flyp", 0, 0.6, (RATE,))
    shown = cells(plan)
    assert "| latteclip | **80.00**<br>80.27 (-0.27) | *50.00*<br>56.26 (-6.26) |" in shown
    assert "| flyp + pseudo-label | *60.00* | **60.00** | *60.00* |" in shown
    rows = "eurosat (flyp + pseudo-label), dtd (flyp + pseudo-label)"
    assert f"Not compared with the paper: {rows}: config.train.learning_rate" in note(plan)


def test_what_a_row_does_not_read_does_not_count(sweep, write_run):
    plan = sweep("1", "eurosat", (0,))
    pixels = ("--config.descriptions.engine=pixels",)
    write_run("eurosat", "flyp", 0, 0.8, pixels)
    write_run(
        "eurosat", "llava_zero_shot", 0, 0.4, (RATE,), n_train=0, weights_source=None, model="llava"
    )
    assert "Not compared" not in note(plan)
    write_run("eurosat", "llava_zero_shot", 0, 0.4, pixels, n_train=0, weights_source=None)
    reason = "config.descriptions.engine is 'pixels' instead of 'llava'"
    assert f"Not compared with the paper: eurosat (llava zero-shot): {reason}" in note(plan)


def test_a_part_of_the_images_is_the_papers_in_figure_6(sweep, write_run):
    plan = sweep("figure6", "eurosat", (0,))
    protocol = "coop, inductive, last step, 189 of 18,900 training images"
    row = "latteclip-fraction-0.01"
    write_run("eurosat", row, 0, 0.8, protocol=protocol, n_train=189)
    assert "Not compared" not in note(plan)
    write_run("eurosat", row, 0, 0.8, protocol=protocol, n_train=190)
    assert "190 training images instead of 189" in note(plan)


def test_a_run_without_its_configuration_is_not_compared(sweep, write_run):
    plan = sweep("5", "eurosat", (0,))
    write_run("eurosat", "latteclip", 0, 0.8).with_name("config.json").unlink()
    assert "Not compared with the paper: eurosat: no config.json in " in note(plan)
    write_run("eurosat", "latteclip", 0, 0.8)
    path = plan.out / "eurosat/latteclip-s0/config.json"
    config = json.loads(path.read_text())
    del config["train"]["beta1"]
    config["method"]["new_part"] = True
    path.write_text(json.dumps(config))
    assert (
        "config.method.new_part is True instead of '(absent)', config.train.beta1 is '(absent)' "
        "instead of 0.9"
    ) in note(plan)


def test_a_changed_configuration_file_is_compared_with_the_packaged_one(sweep, write_run, tmp_path):
    """The run's configuration is what the sweep was asked for, and still not the paper's."""
    write_run("eurosat", "latteclip", 0, 0.8, (RATE,))
    changed = tmp_path / "mine" / "eurosat.py"
    changed.parent.mkdir()
    shutil.copy(PACKAGED_CONFIGS / "eurosat.py", changed)
    plan = dataclasses.replace(sweep("5", str(changed), (0,)), overrides=(RATE,))
    assert "config.train.learning_rate is 1e-05 instead of 1e-07" in note(plan)


def test_the_note_of_table_4_names_the_reading(sweep):
    plan = sweep("4", "demo", (0,))
    assert "Our reading" in note(plan)
    assert note(plan).endswith("Here: config.descriptions.correct_label=pseudo.")
    other = dataclasses.replace(plan, overrides=("--config.descriptions.correct_label=true",))
    assert note(other).endswith("Here: config.descriptions.correct_label=true.")


def test_the_note_of_table_4_names_the_reading_of_the_runs(sweep, write_run):
    """Tables may be written later, without the overrides that the runs were made with."""
    true = "--config.descriptions.correct_label=true"
    write_run("demo", "correct-2", 0, 0.5, overrides=(true,))
    assert "Here: config.descriptions.correct_label=true." in note(sweep("4", "demo", (0,)))


@pytest.mark.parametrize("content", ["{", '{"descriptions": {"engine": "pixels"}}'])
def test_a_run_that_does_not_record_the_reading_stops_no_table(sweep, write_run, content):
    """Its config.json is damaged, or of a version that had no such key."""
    path = write_run("demo", "correct-2", 0, 0.5)
    (path.parent / "config.json").write_text(content, encoding="utf-8")
    assert "Here: config.descriptions.correct_label=pseudo." in note(sweep("4", "demo", (0,)))


def test_every_exempt_key_is_a_key_and_none_of_the_papers_settings_is_exempt():
    for dataset in paper_datasets():
        config, _ = parse(["train", f"--config=configs/{dataset}.py"])
        keys = [key for key, _ in flatten(config)]
        for pattern in comparable.EXEMPT:
            assert fnmatch.filter(keys, pattern), pattern
    exempt = {key for key in keys for p in comparable.EXEMPT if fnmatch.fnmatchcase(key, p)}
    rows = {row for table in TABLES.values() for row in table.rows}
    fixed = {o[len("--config.") :].split("=")[0] for row in rows for o in row.overrides}
    fixed |= {key for key in keys if key.startswith(("method.", "augment."))}
    fixed |= {key for key in keys if key.startswith("train.")} - {"train.microbatch_size"}
    assert not fixed & exempt
