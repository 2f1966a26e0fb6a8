"""Which jobs a sweep takes, and the commands that it prints."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from pathlib import Path

import pytest

from lattec_jax.paper_tables.plan import (
    DESCRIBE,
    DOWNLOAD,
    PSEUDO_LABEL,
    commands,
    make_jobs,
)
from lattec_jax.paper_tables.tables import TABLES
from lattec_jax.runtime.config import parse, to_json
from lattec_jax.runtime.errors import ConfigError
from lattec_jax.sweep import main


def test_runs_that_tables_share_are_there_once(sweep):
    jobs = make_jobs(sweep("1,2,3,4,5,figure6", seeds=(0, 1, 2)))
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))
    runs = [job for job in jobs if not job.is_preparation]
    # 6 + 4 + 4 + 3 + 4 rows beside those of Table 1, of which zero-shot needs one seed only and the
    # demo's engine cannot name classes.
    assert len(runs) == 3 * (4 + 6 + 4 + 4 + 3 + 4) + 1
    known = set()
    for job in jobs:  # in this order, everything is there when it is needed
        assert set(job.needs) <= known
        known.add(job.name)


def test_the_rows_of_llava_are_planned_where_the_engine_can_answer(sweep):
    jobs = {job.name: job for job in make_jobs(sweep("1", "eurosat"))}
    job = jobs["eurosat/llava_zero_shot-s0"]
    assert job.module == "captioning.classify" and not job.needs
    assert "eurosat/llava_zero_shot-s1" not in jobs
    assert "demo/llava_zero_shot-s0" not in {job.name for job in make_jobs(sweep("1"))}


def test_other_groups_and_shares_are_described_on_their_own(sweep):
    jobs = {job.name: job for job in make_jobs(sweep("4,figure6"))}
    labels, texts, groups = (jobs[name] for name in jobs["demo/correct-2-s0"].needs)
    assert labels.arguments == ("--config=configs/demo.py:preset=paper",)
    assert texts.arguments[1:] == ("--kind=image,group",)
    assert groups.arguments[1:] == (
        "--config.descriptions.correct_per_group=2",
        "--kind=group",
    )
    assert groups.made[0].name == "pixels-group-of-4-2-correct.jsonl"
    assert jobs["demo/latteclip-s0"].needs == (labels.name, texts.name)
    assert jobs["demo/flyp_oracle-s0"].needs == (labels.name,)
    fraction = [jobs[name] for name in jobs["demo/latteclip-fraction-0.2-s0"].needs]
    assert [job.arguments[1] for job in fraction] == ["--config.dataset.train_fraction=0.2"] * 2
    assert jobs["demo/flyp_oracle-fraction-0.2-s0"].needs == (fraction[0].name,)


def test_downloads_come_first_where_public_files_are_known(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("LATTECLIP_DATA_DIR", str(tmp_path))
    plan = dataclasses.replace(sweep("1", "demo,eurosat"), downloads=True)
    jobs = {job.name: job for job in make_jobs(plan)}
    assert [name for name in jobs if name.endswith("download")] == ["eurosat/download"]
    job = jobs["eurosat/download"]
    assert (job.module, job.needs, job.is_preparation) == (DOWNLOAD, (), True)
    assert job.arguments == ("--config=configs/eurosat.py:preset=paper",)
    root = tmp_path / "eurosat"
    assert job.made == (root / "2750", root / "split_zhou_EuroSAT.json")
    others = [jobs[name] for name in jobs if name.startswith("eurosat/") and name != job.name]
    assert len(others) > 8 and all(job.name in other.needs for other in others)
    assert not any(job.name in other.needs for other in make_jobs(sweep("1", "eurosat")))


def test_a_preparation_counts_only_for_what_it_was_made_for(sweep):
    plan = sweep("2")
    prompt = "--config.descriptions.prompts.image=What is it?"
    other = dataclasses.replace(plan, overrides=(prompt,))
    jobs, changed = (
        {job.module: job for job in make_jobs(s) if job.is_preparation} for s in (plan, other)
    )
    for job in jobs.values():
        job.product.parent.mkdir(parents=True, exist_ok=True)
        job.product.touch()
    assert jobs[PSEUDO_LABEL].done
    assert not changed[DESCRIBE].done
    # The mark alone is not enough: the descriptions must be there.
    assert not jobs[DESCRIBE].done


def test_printed_commands_are_those_of_the_runs(sweep):
    plan = sweep("2")
    jobs = make_jobs(plan)
    lines = commands(jobs, None)
    assert len(lines) == 14 and all("\n" not in line for line in lines)
    for line in lines:
        python, flag, module, *arguments = shlex.split(line)
        assert (python, flag, module) == ("python", "-m", "lattec_jax.train")
        config, _ = parse(["train", *[a for a in arguments if not a.startswith("--workdir=")]])
        assert f"-s{config.seed}" in arguments[-1]
    (labels,), (describe,) = commands(jobs, PSEUDO_LABEL), commands(jobs, DESCRIBE)
    assert labels.startswith("python -m lattec_jax.pseudo_label ") and " && touch " in labels
    assert describe.startswith("python -m captioning.describe ") and " && touch " in describe


def test_what_is_done_is_not_printed_again(sweep, write_run):
    plan = sweep("2")
    write_run("demo", "latteclip", 1, 0.7)
    lines = commands(make_jobs(plan), None)
    assert len(lines) == 13 and not any("/latteclip-s1" in line for line in lines)


def test_a_run_of_another_configuration_is_refused(sweep):
    plan = sweep("2")
    directory = plan.workdir("demo", plan.tables[0].rows[0], 0)
    directory.mkdir(parents=True)
    argv = ["train", "--config=configs/demo.py", "--config.method.alpha=0.5"]
    (directory / "config.json").write_text(to_json(parse(argv)[0]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)another configuration.*method\.alpha"):
        make_jobs(plan)


def test_overrides_reach_every_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [
        "sweep",
        "--tables=3,5",
        "--datasets=demo,mine.py",
        "--seeds=4",
        "--config.train.max_steps=7",
    ]
    shutil.copy(Path(__file__).parents[2] / "configs/demo.py", "mine.py")
    main([*argv, "--mode=runs", "--out=somewhere"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (5 + 3)
    for line in lines:
        assert "--config.train.max_steps=7" in line and "--config.seed=4" in line
        assert "somewhere/demo/" in line or "somewhere/mine/" in line
    assert sum("--config=mine.py:preset=paper,method=latteclip" in line for line in lines) == 8
    assert not Path("somewhere").exists()


def test_the_preset_reaches_every_command(tmp_path, capsys):
    argv = ["sweep", "--tables=1", "--datasets=demo", "--seeds=0", "--preset=released_code"]
    methods = ("flyp_oracle", "zero_shot", "reclip", "flyp", "latteclip")
    for mode, options in (
        ("pseudo_labels", [""]),
        ("descriptions", [""]),
        ("runs", [f",method={method}" for method in methods]),
    ):
        main([*argv, f"--mode={mode}", f"--out={tmp_path}"])
        files = [line.split()[3] for line in capsys.readouterr().out.splitlines()]
        assert files == [f"--config=configs/demo.py:preset=released_code{o}" for o in options]


def test_what_rows_set_cannot_be_overridden(sweep):
    plan = sweep("1")
    keys = {
        o[len("--config.") :].split("=")[0]
        for t in TABLES.values()
        for r in t.rows
        for o in r.overrides
    }
    assert {
        "method.texts",
        "method.labels",
        "descriptions.group_size",
        "dataset.train_fraction",
    } <= keys
    for key in sorted(keys):
        with pytest.raises(ConfigError, match="the rows of the tables set"):
            dataclasses.replace(plan, overrides=(f"--config.{key}=1",))


def test_a_configuration_that_is_not_the_method_is_refused(sweep, tmp_path):
    demo = (Path(__file__).parents[2] / "configs/demo.py").read_text(encoding="utf-8")
    changed = tmp_path / "mine.py"
    line = "    config.descriptions.group_size = 8\n    return config"
    changed.write_text(demo.replace("    return config", line), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.descriptions\.group_size=4, found 8"):
        make_jobs(sweep("5", str(changed)))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--tables=figure5", r"--tables: .*found 'figure5'\. Did you mean 'figure6'\?"),
        ("--seeds=0,x", r"--seeds: expected whole numbers from 0 to 2\^32 - 1, found 'x'"),
        ("--seeds=4294967296", "found '4294967296'"),
        ("--datasets=dtd,configs/dtd.py", "2 configurations are called 'dtd'"),
        ("--datasets=common", "the configuration common names no data set"),
        ("--seeds=", "expected at least one each"),
        ("--datasets=eurosatt", r"no configuration file configs/eurosatt\.py"),
        ("--config.seed", r"expected --config\.key=value"),
        (
            "--config.seed=1",
            r"--config\.seed=1: the rows of the tables set config\.seed themselves",
        ),
        ("--config.preset=paper", r"choose the preset of all runs with --preset=NAME"),
        ("--preset=papr", r"preset: .*found 'papr'\. Did you mean 'paper'\?"),
        ("--config.sed=1", r"unknown configuration key config\.sed\. Did you mean 'seed'\?"),
        ("eurosat", "unexpected argument 'eurosat'"),
    ],
)
def test_mistakes_on_the_command_line(argument, message):
    with pytest.raises(ConfigError, match=message):
        main(["sweep", argument, "--mode=runs"])
