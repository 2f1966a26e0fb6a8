"""What a killed run left at its end: the next one with the same command makes it whole."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from convert import export
from lattec_jax import train, train_loop
from lattec_jax.runtime.files import partial_path
from tests.runs import arguments


def names(directory) -> set[str]:
    """All files and directories below, but TensorBoard's, of which each session has its own."""
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*"))
    return {name for name in found if not name.startswith("tensorboard/")}


def repeat_command(directory):
    train.main(arguments("labeled", f"--workdir={directory.name}", "--config.eval_every=3"))


@pytest.mark.parametrize(
    "again", [train_loop.show_finished, pytest.param(repeat_command, marks=pytest.mark.full)]
)
def test_a_finished_run_without_its_page_makes_it_and_sweeps_what_a_kill_left(
    again, trained, capsys
):
    directory = trained / "first"
    before, page = names(directory), (directory / "report.html").read_bytes()
    (directory / "report.html").unlink()
    partial_path(directory / "report.html", "0" * 16).write_bytes(b"half")
    scratch = partial_path(directory / "model", "1" * 16)
    (scratch / "new").mkdir(parents=True)
    (scratch / "new" / "model.safetensors").write_bytes(b"half")
    again(directory)
    shown = capsys.readouterr().out
    assert "holds a finished run" in shown
    assert "The model agrees with the frozen model on" in shown  # the verdict
    last = shown.splitlines()[-1]
    named = re.fullmatch(
        r"next: python -m lattec_jax\.predict --workdir=(\S+) IMAGE_OR_FOLDER \.\.\.", last
    )
    assert named is not None and Path(named[1]).resolve() == directory.resolve()
    assert names(directory) == before
    assert (directory / "report.html").read_bytes() == page


@pytest.mark.full
def test_all_that_a_run_writes_has_the_permissions_of_the_umask(place):
    before = os.umask(0o027)
    try:
        train.main(arguments("labeled", "--workdir=run", "--config.artifacts=made"))
    finally:
        os.umask(before)
    others = [
        path
        for root in (place / "run", place / "made")
        for path in (root, *root.rglob("*"))
        if stat.S_IMODE(path.stat().st_mode) != (0o750 if path.is_dir() else 0o640)
    ]
    assert not others


def test_a_run_sweeps_its_artifacts_and_an_export_its_own_name(trained):
    made = trained / "artifacts" / "labeled"
    assert made.is_dir()
    before = names(trained / "artifacts")
    places = (made / "content.json", made / "image_caches/training-0",
              made / "pseudo_labels/0.jsonl",
              made / "descriptions/0.jsonl", made / "descriptions/shards/0.jsonl")  # fmt: skip
    for place in places:
        partial_path(place, "0" * 16).write_bytes(b"half")
    train.main(arguments("labeled", "--workdir=second", "--config.train.max_steps=0"))
    assert names(trained / "artifacts") == before
    for name in ("out", "other"):
        (partial_path(trained / name, "0" * 16) / "new").mkdir(parents=True)
    export.export(trained / "first", "prototypes", trained / "out")
    assert [p.name for p in trained.glob(".*")] == [partial_path(trained / "other", "0" * 16).name]
