"""Which jobs a sweep takes, and the commands that it prints."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from lattec_jax.config import parse, to_json
from lattec_jax.errors import ConfigError
from lattec_jax.sweep.__main__ import main, parse_sweep
from lattec_jax.sweep.plan import commands, make_jobs


def test_runs_that_tables_share_are_there_once(sweep):
    jobs = make_jobs(sweep("1,2,3,4,5,figure6", seeds=(0, 1, 2)))
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))
    runs = [job for job in jobs if not job.prepares]
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
    groups = jobs["demo/descriptions-correct_per_group-2"]
    assert groups.arguments[-2:] == (
        "--config.descriptions.correct_per_group=2",
        "--kind=group",
    )
    assert jobs["demo/correct-2-s0"].needs == (
        "demo/pseudo-labels",
        "demo/descriptions",
        "demo/descriptions-correct_per_group-2",
    )
    assert jobs["demo/latteclip-share-0.2-s0"].needs == (
        "demo/pseudo-labels-0.2",
        "demo/descriptions-0.2",
    )
    assert jobs["demo/flyp_oracle-share-0.2-s0"].needs == ("demo/pseudo-labels-0.2",)


def test_printed_commands_are_those_of_the_runs(sweep):
    plan = sweep("2")
    jobs = make_jobs(plan)
    lines = commands(jobs, preparations=False)
    assert len(lines) == 14 and all("\n" not in line for line in lines)
    for line in lines:
        python, flag, module, *arguments = shlex.split(line)
        assert (python, flag, module) == ("python", "-m", "lattec_jax.train")
        config, _ = parse(["train", *[a for a in arguments if not a.startswith("--workdir=")]])
        assert f"-s{config.seed}" in arguments[-1]
    # A line may start before the others have ended: it makes what it needs itself.
    labels, describe = commands(jobs, preparations=True)
    assert describe.startswith(labels + " && ")


def test_what_is_done_is_not_printed_again(sweep, write_run):
    plan = sweep("2")
    write_run("demo", "latteclip", 1, 0.7)
    lines = commands(make_jobs(plan), preparations=False)
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
    assert sum("--config=mine.py" in line for line in lines) == 8
    assert not Path("somewhere").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--tables=figure5", r"--tables: .*found 'figure5'\. Did you mean 'figure6'\?"),
        ("--seeds=0,x", "--seeds: expected whole numbers from 0, found 'x'"),
        ("--seeds=", "expected at least one each"),
        ("--datasets=eurosatt", r"no configuration file configs/eurosatt\.py"),
        ("--config.seed", r"expected --config\.key=value"),
        ("--config.sed=1", r"unknown configuration key config\.sed\. Did you mean 'seed'\?"),
        ("eurosat", "unexpected argument 'eurosat'"),
    ],
)
def test_mistakes_on_the_command_line(argument, message):
    with pytest.raises(ConfigError, match=message):
        make_jobs(parse_sweep(["sweep", argument])[0])
